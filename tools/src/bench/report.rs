//! The figures of a load, and etcd's report of them.
//!
//! Latencies stand in an HDR histogram, so a run of any length needs the same memory. Its three significant digits
//! concern the response time histogram and the percentiles; the other figures are exact.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies are kept in nanoseconds, up to an hour.
const LONGEST: u64 = 3_600_000_000_000;
const PERCENTILES: [f64; 8] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9];
const BUCKETS: u32 = 10;
const BAR_LENGTH: u64 = 40;

/// Figures of one second.
#[derive(Clone, Copy, Debug)]
struct Second {
    min: Duration,
    max: Duration,
    sum: Duration,
    count: u32,
}

/// Gathers the latencies of one run.
#[derive(Debug)]
pub(super) struct Recorder {
    latencies: Histogram<u64>,
    fastest: Duration,
    slowest: Duration,
    /// Of seconds, and of their squares.
    sum: f64,
    squares: f64,
    errors: BTreeMap<String, u64>,
    /// By Unix time in seconds.
    seconds: BTreeMap<u64, Second>,
    total: Duration,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder::new()
    }
}

impl Recorder {
    pub(super) fn new() -> Recorder {
        Recorder {
            latencies: Histogram::new_with_bounds(1, LONGEST, 3)
                .expect("the bounds are in order and 3 digits allowed"),
            fastest: Duration::MAX,
            slowest: Duration::ZERO,
            sum: 0.0,
            squares: 0.0,
            errors: BTreeMap::new(),
            seconds: BTreeMap::new(),
            total: Duration::ZERO,
        }
    }

    /// Counts a request that was answered `took` after it was sent at Unix time `second`.
    pub(super) fn success(&mut self, second: u64, took: Duration) {
        self.latencies.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(LONGEST).max(1));
        self.fastest = self.fastest.min(took);
        self.slowest = self.slowest.max(took);
        self.sum += took.as_secs_f64();
        self.squares += took.as_secs_f64().powi(2);
        let empty = Second { min: Duration::MAX, max: Duration::ZERO, sum: Duration::ZERO, count: 0 };
        let entry = self.seconds.entry(second).or_insert(empty);
        entry.min = entry.min.min(took);
        entry.max = entry.max.max(took);
        entry.sum += took;
        entry.count += 1;
    }

    /// Counts a request that failed.
    pub(super) fn error(&mut self, text: String) {
        *self.errors.entry(text).or_default() += 1;
    }

    /// Says how long the whole run took.
    pub(super) fn finish(&mut self, total: Duration) {
        self.total = total;
    }

    /// The report. `precise` prints all digits, `sample` adds the figures of each second.
    pub(super) fn report(&self, precise: bool, sample: bool) -> String {
        let show = |figure: f64| if precise { shortest(figure) } else { format!("{figure:.4}") };
        let mut out = String::new();
        let count = self.latencies.len();
        if count > 0 {
            let average = self.sum / count as f64;
            let deviation = (self.squares / count as f64 - average * average).max(0.0).sqrt();
            let _ = writeln!(out, "\nSummary:");
            for (name, figure) in [
                ("Total", self.total.as_secs_f64()),
                ("Slowest", self.slowest.as_secs_f64()),
                ("Fastest", self.fastest.as_secs_f64()),
                ("Average", average),
                ("Stddev", deviation),
            ] {
                let _ = writeln!(out, "  {name}:\t{} secs.", show(figure));
            }
            let _ = writeln!(out, "  Requests/sec:\t{}", show(count as f64 / self.total.as_secs_f64()));
            self.histogram(&mut out, show);
            let _ = writeln!(out, "\nLatency distribution:");
            for percentile in PERCENTILES {
                let latency = self.latencies.value_at_quantile(percentile / 100.0);
                let _ =
                    writeln!(out, "  {percentile}% in {} secs.", show(self.within(latency).as_secs_f64()));
            }
            if sample {
                self.samples(&mut out);
            }
        }
        if !self.errors.is_empty() {
            let _ = writeln!(out, "\nError distribution:");
            for (text, count) in &self.errors {
                let _ = writeln!(out, "  [{count}]\t{text}");
            }
        }
        out
    }

    /// A value of the histogram, which may lie a digit beside the exact ones.
    fn within(&self, nanos: u64) -> Duration {
        Duration::from_nanos(nanos).clamp(self.fastest, self.slowest)
    }

    /// Ten steps from the fastest to the slowest, each with the number of requests up to it.
    fn histogram(&self, out: &mut String, show: impl Fn(f64) -> String) {
        let step = (self.slowest - self.fastest) / BUCKETS;
        let mut limits: Vec<Duration> = (0..BUCKETS).map(|nth| self.fastest + step * nth).collect();
        limits.push(self.slowest);
        let mut counts = vec![0u64; limits.len()];
        for latency in self.latencies.iter_recorded() {
            let value = self.within(self.latencies.lowest_equivalent(latency.value_iterated_to()));
            let bucket = limits.iter().position(|limit| value <= *limit).unwrap_or(limits.len() - 1);
            counts[bucket] += latency.count_since_last_iteration();
        }
        let most = counts.iter().copied().max().unwrap_or(0).max(1);
        let _ = writeln!(out, "\nResponse time histogram:");
        for (limit, count) in limits.iter().zip(&counts) {
            let bar = "∎".repeat((count * BAR_LENGTH / most) as usize);
            let _ = writeln!(out, "  {} [{count}]\t|{bar}", show(limit.as_secs_f64()));
        }
    }

    fn samples(&self, out: &mut String) {
        let _ = writeln!(out, "\nSample in one second (unix latency throughput):");
        let _ = writeln!(out, "UNIX-SECOND,MIN-LATENCY-MS,AVG-LATENCY-MS,MAX-LATENCY-MS,AVG-THROUGHPUT");
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        for (second, figures) in &self.seconds {
            let (min, max, count) = (millis(figures.min), millis(figures.max), figures.count);
            let average = millis(figures.sum) / f64::from(count);
            let _ = writeln!(out, "{second},{min:.6},{average:.6},{max:.6},{count}");
        }
    }
}

/// All digits that a figure has, with an exponent when it is very small or very large.
fn shortest(figure: f64) -> String {
    let text = format!("{figure:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..21).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => figure.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_etcds_shape() {
        let mut recorder = Recorder::new();
        for millis in 1..=100 {
            recorder.success(1_700_000_000 + millis / 60, Duration::from_millis(millis));
        }
        recorder.error("etcdserver: too many requests".into());
        recorder.error("etcdserver: too many requests".into());
        recorder.finish(Duration::from_secs(2));
        let full = format!("\t|{}", "∎".repeat(40));
        let report = recorder.report(false, true);
        let (summary, rest) = report.split_once("\nResponse time histogram:\n").unwrap();
        assert_eq!(
            summary,
            "\nSummary:\n  Total:\t2.0000 secs.\n  Slowest:\t0.1000 secs.\n  Fastest:\t0.0010 secs.\n  \
             Average:\t0.0505 secs.\n  Stddev:\t0.0289 secs.\n  Requests/sec:\t50.0000\n"
        );
        let (histogram, rest) = rest.split_once("\nLatency distribution:\n").unwrap();
        let lines: Vec<_> = histogram.lines().collect();
        assert_eq!(lines[0], "  0.0010 [1]\t|∎∎∎∎");
        assert!(lines.len() == 11 && lines[10].starts_with("  0.1000 ["), "{lines:?}");
        assert!(lines.iter().any(|line| line.ends_with(&full)));
        let sum: u64 =
            lines.iter().map(|l| l.split(['[', ']']).nth(1).unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(sum, 100);
        assert_eq!(
            rest,
            "  10% in 0.0100 secs.\n  25% in 0.0250 secs.\n  50% in 0.0500 secs.\n  75% in 0.0750 secs.\n  \
             90% in 0.0900 secs.\n  95% in 0.0950 secs.\n  99% in 0.0990 secs.\n  99.9% in 0.1000 secs.\n\
             \nSample in one second (unix latency throughput):\n\
             UNIX-SECOND,MIN-LATENCY-MS,AVG-LATENCY-MS,MAX-LATENCY-MS,AVG-THROUGHPUT\n\
             1700000000,1.000000,30.000000,59.000000,59\n1700000001,60.000000,80.000000,100.000000,41\n\
             \nError distribution:\n  [2]\tetcdserver: too many requests\n"
        );
        assert_eq!(Recorder::new().report(false, true), "");
    }

    #[test]
    fn precise_figures_have_all_their_digits() {
        for (figure, text) in [
            (0.5, "0.5"),
            (0.0000123, "1.23e-05"),
            (0.000123, "0.000123"),
            (1e21, "1e+21"),
            (12345.678, "12345.678"),
        ] {
            assert_eq!(shortest(figure), text);
        }
    }
}

//! What the rounds measured, and the table of it.

/// One line of one server in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) rate: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) cpu_ms_per_1000: f64,
    pub(crate) written_per_1000: f64,
    pub(crate) rss_bytes: f64,
}

/// What a server takes with many keys.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) keys: u64,
    pub(crate) load_rate: f64,
    pub(crate) written_per_put: f64,
    pub(crate) rss_per_key: f64,
    pub(crate) anonymous_per_key: f64,
    pub(crate) anonymous_per_key_restarted: f64,
    pub(crate) starts_ms: Vec<f64>,
}

/// Everything that a run measured.
#[derive(Debug)]
pub(crate) struct Results {
    /// The first is the one that the others are compared with.
    servers: Vec<String>,
    /// Name of a line, and for each server its rounds.
    lines: Vec<(String, Vec<Vec<Cell>>)>,
    pub(crate) fio: Vec<f64>,
    pub(crate) memory: Vec<(usize, Memory)>,
}

/// The middle one of a few figures.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    assert!(!values.is_empty(), "a median of nothing");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

impl Results {
    pub(crate) fn new(servers: Vec<String>) -> Results {
        Results { servers, lines: Vec::new(), fio: Vec::new(), memory: Vec::new() }
    }

    pub(crate) fn add(&mut self, server: usize, line: String, cell: Cell) {
        let at = self.lines.iter().position(|(name, _)| *name == line).unwrap_or_else(|| {
            self.lines.push((line, vec![Vec::new(); self.servers.len()]));
            self.lines.len() - 1
        });
        self.lines[at].1[server].push(cell);
    }

    /// The table, in Markdown.
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        let fio = median(self.fio.iter().copied());
        let mut put = |line: String| out += &(line + "\n");
        put(format!("\nfio, one fdatasync per record: {fio:.0}/s (median)\n"));
        put("| load | server | req/s | p50 us | p99 us | CPU ms/1000 | written KB/1000 | RSS MB |".into());
        put("|---|---|---|---|---|---|---|---|".into());
        for (name, servers) in &self.lines {
            for (at, server) in self.servers.iter().enumerate() {
                put(self.row(name, server, &servers[at], (at > 0).then_some(&servers[0][..])));
            }
        }
        if !self.memory.is_empty() {
            put("\n| keys | server | loaded, puts/s | written B/put | RSS B/key | anonymous B/key | the same after a \
                 restart | start after SIGKILL, ms |"
                .into());
            put("|---|---|---|---|---|---|---|---|".into());
        }
        for (at, memory) in &self.memory {
            put(self.memory_row(*at, memory));
        }
        out
    }

    /// A figure is the median of the rounds; the ratio behind it is the median of the rounds' ratios.
    fn row(&self, name: &str, server: &str, rounds: &[Cell], base: Option<&[Cell]>) -> String {
        let figure = |of: fn(&Cell) -> f64, digits: usize| {
            let value = median(rounds.iter().map(of));
            match base {
                // Nothing is no measure: reads write nothing.
                Some(base) if base.iter().all(|etcd| of(etcd) > 0.0) => {
                    let ratio = median(rounds.iter().zip(base).map(|(ours, etcd)| of(ours) / of(etcd)));
                    format!("{value:.digits$} ({ratio:.2}x)")
                }
                Some(_) => format!("{value:.digits$}"),
                None => format!("{value:.digits$}"),
            }
        };
        format!(
            "| {name} | {server} | {} | {} | {} | {} | {} | {} |",
            figure(|c| c.rate, 0),
            figure(|c| c.p50_us, 0),
            figure(|c| c.p99_us, 0),
            figure(|c| c.cpu_ms_per_1000, 1),
            figure(|c| c.written_per_1000 / 1e3, 0),
            figure(|c| c.rss_bytes / 1e6, 0),
        )
    }

    fn memory_row(&self, at: usize, memory: &Memory) -> String {
        let base = &self.memory[0].1;
        let figure = |of: fn(&Memory) -> f64| match at {
            0 => format!("{:.0}", of(memory)),
            _ => format!("{:.0} ({:.2}x)", of(memory), of(memory) / of(base)),
        };
        let starts: Vec<String> = memory.starts_ms.iter().map(|ms| format!("{ms:.0}")).collect();
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            memory.keys,
            self.servers[at],
            figure(|m| m.load_rate),
            figure(|m| m.written_per_put),
            figure(|m| m.rss_per_key),
            figure(|m| m.anonymous_per_key),
            figure(|m| m.anonymous_per_key_restarted),
            starts.join(", "),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_ratios() {
        let cell = |rate| Cell {
            rate,
            p50_us: 1.0,
            p99_us: 1.0,
            cpu_ms_per_1000: 1.0,
            written_per_1000: 1.0,
            rss_bytes: 1.0,
        };
        let mut results = Results::new(vec!["etcd".into(), "ours".into()]);
        results.fio.push(1.0);
        // The machine was three times as fast in the second round: it is no ratio's business.
        for (etcd, ours) in [(100.0, 200.0), (300.0, 630.0), (100.0, 250.0)] {
            results.add(0, "put".into(), cell(etcd));
            results.add(1, "put".into(), cell(ours));
        }
        let text = results.render();
        assert!(text.contains("| put | etcd | 100 |"), "{text}");
        assert!(text.contains("| put | ours | 250 (2.10x) |"), "{text}");
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median([9.0]), 9.0);
    }
}

//! What fuzzing tests share: a loop with a time limit, randomness that replays, and blind changes of bytes.
//!
//! A test brings a valid file, changes it, reads it, and asserts what holds for every input. The short form is part of
//! `cargo test`; the long form is the same test with more time:
//!
//! ```text
//! TRILITH_FUZZ_SECONDS=3600 cargo test --release -p trilith-wal --test fuzz
//! TRILITH_FUZZ_SEED=12345 cargo test -p trilith-wal --test fuzz     # one round, the one that a failure printed
//! ```
//!
//! The short form always takes the same seeds, so that a change that breaks nothing never fails; the long form takes new ones.
//!
//! Promises: a round depends on nothing but its seed, and the seed of a failed round is printed. For tests only.

use std::time::{Duration, Instant, SystemTime};

/// Runs rounds for `seconds`, or as the environment says, and gives each a generator of its own. Returns how many
/// there were. Panics when the process grew beyond `memory_bytes`: no input may make a reader allocate at will.
pub fn run(name: &str, seconds: u64, memory_bytes: u64, mut round: impl FnMut(&mut Rng)) -> u64 {
    if let Some(seed) = number("TRILITH_FUZZ_SEED") {
        round(&mut Rng::new(seed));
        return 1;
    }
    let long = number("TRILITH_FUZZ_SECONDS");
    let time = Duration::from_secs(long.unwrap_or(seconds));
    let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The long form searches where nobody has been; the short one guards what was found sound.
    let first = if long.is_some() { epoch.as_nanos() as u64 } else { 0 };
    let begin = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || begin.elapsed() < time {
        let failed = Failed { name, seed: first.wrapping_add(rounds) };
        round(&mut Rng::new(failed.seed));
        let peak = peak_bytes();
        assert!(peak <= memory_bytes, "the process grew to {peak} bytes, {memory_bytes} is the most");
        rounds += 1;
    }
    eprintln!("{name}: {rounds} rounds from seed {first} on");
    rounds
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Says how to repeat a round that panics.
struct Failed<'n> {
    name: &'n str,
    seed: u64,
}

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: this round again: TRILITH_FUZZ_SEED={}", self.name, self.seed);
        }
    }
}

/// The most memory that the process ever had, in bytes; 0 where nobody counts it.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// SplitMix64: every seed is as good as any other, neighbours too.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// Any number.
    #[allow(clippy::should_implement_trait)] // An endless generator is no iterator.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`; 0 if `n` is.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A number of the kinds that break readers: edges of every width, small ones, and any.
    pub fn number(&mut self) -> u64 {
        let edge = 1u64.checked_shl(self.below(65) as u32).unwrap_or(0);
        match self.below(5) {
            0 => edge.wrapping_sub(1),
            1 => edge,
            2 => edge.wrapping_add(self.below(9) as u64).wrapping_sub(4),
            3 => self.below(300) as u64,
            _ => self.next(),
        }
    }
}

/// Changes bytes blindly, in one to four places: bits, noise, numbers, lost sectors, moved pieces, another length.
/// `unit` is the size of the format's blocks.
pub fn mutate(bytes: &mut Vec<u8>, unit: usize, rng: &mut Rng) {
    for _ in 0..1 + rng.below(4) {
        let len = bytes.len();
        let at = rng.below(len);
        let size = match rng.below(3) {
            0 => unit,
            1 => 512,
            _ => rng.below(600),
        };
        let whole = at / size.max(1) * size;
        match rng.below(9) {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << rng.below(8)),
            1 => bytes.iter_mut().skip(at).take(size).for_each(|b| *b = rng.next() as u8),
            2 => bytes.iter_mut().skip(whole).take(size).for_each(|b| *b = 0),
            3 => {
                let number = rng.number().to_le_bytes();
                let width = rng.pick(&[1, 2, 4, 8]);
                bytes
                    .iter_mut()
                    .skip(at / 8 * 8 + rng.below(2) * 4)
                    .zip(number)
                    .take(width)
                    .for_each(|(b, n)| *b = n);
            }
            4 => bytes.truncate(at),
            5 => bytes.resize(len + rng.below(3 * unit), 0),
            6 => {
                let piece: Vec<u8> = bytes.iter().skip(whole).take(size).copied().collect();
                let to = rng.below(len) / size.max(1) * size;
                bytes.iter_mut().skip(to).zip(piece).for_each(|(b, p)| *b = p);
            }
            7 => drop(bytes.drain(at..(at + size).min(len))),
            _ => {
                let noise = rng.bytes(size);
                bytes.splice(at..at, noise);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_replay_and_stand_for_every_length() {
        for seed in 0..20_000 {
            let start: Vec<u8> = Rng::new(seed).bytes(seed as usize % 5000);
            let (mut a, mut b) = (start.clone(), start);
            mutate(&mut a, 4096, &mut Rng::new(seed));
            mutate(&mut b, 4096, &mut Rng::new(seed));
            assert!(a == b, "seed {seed}");
        }
    }

    #[test]
    fn numbers_reach_the_edges() {
        let mut rng = Rng::new(1);
        let numbers: Vec<u64> = (0..10_000).map(|_| rng.number()).collect();
        for edge in [0, 1, 127, 128, 1 << 32, 1 << 56, u64::MAX, 1 << 63] {
            assert!(numbers.contains(&edge), "{edge}");
        }
    }

    #[test]
    fn a_reader_that_takes_too_much_memory_is_found() {
        let result = std::panic::catch_unwind(|| run("greedy", 0, 1, |_| ()));
        assert!(result.is_err() || peak_bytes() == 0);
        assert_eq!(run("modest", 0, u64::MAX, |_| ()), 1);
    }
}

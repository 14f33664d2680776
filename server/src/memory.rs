//! How much memory this process may use for nodes and caches.

/// The budget by default: a quarter of what there is, within these bounds.
const LEAST: u64 = 256 << 20;
const MOST: u64 = 2 << 30;

/// --trilith-memory-budget=0, in bytes.
pub fn default_budget() -> u64 {
    // A control group's limit is "max" where there is none, and its file is missing outside of any.
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    let machine = read("/proc/meminfo").and_then(|text| total_of(&text));
    let there_is = limit.into_iter().chain(machine).min();
    (there_is.unwrap_or(4 * LEAST) / 4).clamp(LEAST, MOST)
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_quarter_of_the_memory_within_bounds() {
        assert_eq!(total_of("MemTotal:       24689764 kB\nMemFree: 1 kB\n"), Some(24_689_764 * 1024));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert!((LEAST..=MOST).contains(&default_budget()));
    }
}

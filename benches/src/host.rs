//! What the machine and /proc say: of the host, and of a process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::Result;

/// Kernel ticks a second, as /proc counts CPU time: 100 on every Linux that we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// Figures of a process at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
    /// The part of it that is no file's, in bytes.
    pub anonymous_bytes: u64,
}

/// Reads the figures of a process.
pub fn usage(pid: u32) -> Result<Usage> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))
    };
    let stat = read("stat")?;
    // The name in parentheses may hold anything; user and system time are the 12th and 13th field after it.
    let after = &stat[stat.rfind(')').map_or(0, |at| at + 1)..];
    let ticks: f64 =
        after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let status = read("status")?;
    Ok(Usage {
        cpu_seconds: ticks / TICKS_PER_SECOND,
        rss_bytes: field(&status, "VmRSS:") * 1024,
        anonymous_bytes: field(&status, "RssAnon:") * 1024,
    })
}

/// What several processes use together.
pub fn usage_of(pids: &[u32]) -> Result<Usage> {
    let mut sum = Usage::default();
    for pid in pids {
        let one = usage(*pid)?;
        sum.cpu_seconds += one.cpu_seconds;
        sum.rss_bytes += one.rss_bytes;
        sum.anonymous_bytes += one.anonymous_bytes;
    }
    Ok(sum)
}

/// Bytes written so far to the device that a folder lies on, by anybody; 0 where there is no device.
///
/// /proc's count of a process is no measure: it adds a whole folio of the page cache, up to a megabyte, when a few
/// bytes of it become dirty.
pub fn device_written(folder: &Path) -> Result<u64> {
    const SECTOR_BYTES: u64 = 512;
    /// "Sectors written" of a block device's statistics.
    const FIELD: usize = 6;
    let device = std::fs::metadata(folder).map_err(|e| format!("{}: {e}", folder.display()))?.dev();
    // As Linux packs the two numbers into one.
    let major = (device >> 8) & 0xfff | (device >> 32) & !0xfff;
    let minor = device & 0xff | (device >> 12) & 0xff_ff00;
    let path = format!("/sys/dev/block/{major}:{minor}/stat");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let sectors: Option<u64> = text.split_whitespace().nth(FIELD).and_then(|word| word.parse().ok());
    Ok(sectors.unwrap_or(0) * SECTOR_BYTES)
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// One line on what a figure was measured on: kernel, CPUs, file system and device of a folder, commit.
pub fn describe(folder: &Path) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "kernel {}, {cpus} CPUs, {} on {}, commit {}",
        kernel.trim(),
        folder.display(),
        mount(folder),
        commit()
    )
}

/// "file system (options) device" of the mount that a folder lies on.
fn mount(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, point) = (words.next()?, words.next()?);
        let (kind, options) = (words.next()?, words.next()?);
        folder.starts_with(point).then(|| (point.len(), format!("{kind} ({options}) {device}")))
    });
    mounts.max_by_key(|(len, _)| *len).map_or_else(|| "an unknown file system".into(), |(_, text)| text)
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".into() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit} with changes"),
    }
}

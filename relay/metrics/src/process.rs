//! What the system knows about this process (proc(5)), by the names that Prometheus' clients use everywhere.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use crate::page::{Metric, Page};

const CPU: Metric = Metric::counter(
    "process_cpu_seconds_total",
    "Time on a processor, in user space and in the kernel.",
);
const MEMORY: Metric = Metric::gauge("process_resident_memory_bytes", "Memory in use.");
const OPEN: Metric = Metric::gauge("process_open_fds", "Open file descriptors.");
const MOST: Metric = Metric::gauge("process_max_fds", "File descriptors that may be open.");
const START: Metric = Metric::gauge(
    "process_start_time_seconds",
    "When the process was started, in seconds since 1970.",
);
const THREADS: Metric = Metric::gauge("process_threads", "Threads.");

const BUILD: Metric = Metric::gauge("relay_build_info", "Always 1; the version is a label.");

/// Puts relay's version and the figures of this process on a page. What cannot be read is 0.
pub fn put_process(page: &mut Page) {
    // All crates have one version.
    page.put_by(&BUILD, "version", [(env!("CARGO_PKG_VERSION"), 1.0)]);
    let figures = Figures::read();
    page.put(&CPU, figures.cpu);
    page.put(&MEMORY, figures.memory);
    page.put(&OPEN, figures.open);
    page.put(&MOST, figures.most);
    page.put(&START, figures.start);
    page.put(&THREADS, figures.threads);
}

#[derive(Debug, Default)]
struct Figures {
    cpu: f64,
    memory: f64,
    open: f64,
    most: f64,
    start: f64,
    threads: f64,
}

fn system(variable: SysconfVar, usual: f64) -> f64 {
    let value = sysconf(variable).ok().flatten();
    value.map_or(usual, |value| value as f64)
}

impl Figures {
    fn read() -> Figures {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Behind the name, which may hold anything; the next field is the third.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let field = |number: usize| -> f64 {
            let text = fields.get(number - 3);
            text.and_then(|text| text.parse().ok()).unwrap_or(0.0)
        };
        let ticks = system(SysconfVar::CLK_TCK, 100.0);
        Figures {
            cpu: (field(14) + field(15)) / ticks,
            memory: field(24) * system(SysconfVar::PAGE_SIZE, 4096.0),
            open: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64,
            most: system(SysconfVar::OPEN_MAX, 0.0),
            start: boot_time() + field(22) / ticks,
            threads: field(20),
        }
    }
}

fn boot_time() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|text| text.trim().parse().ok())
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn this_process_is_read() {
        let figures = Figures::read();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(figures.memory > 1e5 && figures.open >= 3.0, "{figures:?}");
        assert!(figures.threads >= 1.0 && figures.most >= figures.open);
        let age = now.as_secs_f64() - figures.start;
        assert!((-5.0..86_400.0).contains(&age), "{figures:?}");
    }
}

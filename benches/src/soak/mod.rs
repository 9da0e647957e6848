//! The soak: bulk through relay's real tunnel, every byte checked, with segmentation offloads on,
//! off, and mixed between the two ends; then without a pause for as long as keys change several
//! times.

mod pattern;
mod stream;

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use self::stream::{Far, Until, bulk};
use crate::link::Hosts;
use crate::report::aligned;
use crate::routes::{Deployment, Tunnel};
use crate::runner::Progress;
use crate::{Error, Route};

/// WireGuard's keys are renewed when they are so old.
const REKEY: Duration = Duration::from_secs(120);
/// How much later than that new keys may be there.
const REKEY_SLACK: Duration = Duration::from_secs(5);
const KEYS: &str = "WireGuard keys agreed";
const STEPS: usize = 100;
const GIB: f64 = (1_u64 << 30) as f64;

/// What to soak.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The `relay` program.
    pub program: PathBuf,
    /// Bytes that all settings of offloads move together; 0 leaves them out.
    pub bytes: u64,
    /// How long the run over changes of keys is; zero leaves it out.
    pub length: Duration,
    /// The longest time without a byte that is accepted.
    pub stall: Duration,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// What was special about it.
    pub name: &'static str,
    /// Bytes that arrived, both ways together.
    pub bytes: u64,
    /// Bytes that were wrong or missing.
    pub bad: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// The longest time without a byte in the middle of a stream, milliseconds.
    pub stall_ms: f64,
    /// When that ended, seconds from the start.
    pub stall_at: f64,
    /// The longest time that the machine kept the measuring process itself waiting, milliseconds.
    pub pause_ms: f64,
    /// How often keys were renewed.
    pub rekeys: usize,
    /// How often they had to be.
    pub rekeys_expected: usize,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The runs.
    pub parts: Vec<Part>,
    /// The longest time without a byte that is accepted, milliseconds.
    pub stall_limit_ms: f64,
}

/// Name, and which ends leave their offloads unused: the client, the agent.
const SETTINGS: [(&str, bool, bool); 4] = [
    ("offloads on", false, false),
    ("offloads off", true, true),
    ("off at the client", true, false),
    ("off at the agent", false, true),
];

/// Runs the plan.
///
/// # Errors
/// When a program does not start, or a stream breaks. Bad bytes and stalls are in the report.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Report, Error> {
    let deployment = Deployment::start(&plan.program, &Hosts::Same)?;
    let share = plan.bytes / SETTINGS.len() as u64;
    let mut runs: Vec<(&str, bool, bool, Until)> = Vec::new();
    if plan.bytes > 0 {
        let by_bytes = |(name, near, far)| (name, near, far, Until::Bytes(share));
        runs.extend(SETTINGS.map(by_bytes));
    }
    if !plan.length.is_zero() {
        runs.push(("over rekeys", false, false, Until::Time(plan.length)));
    }
    progress.steps(runs.len() * STEPS);
    let parts = runs.into_iter().enumerate().map(|(index, run)| {
        let (name, near, far, until) = run;
        let words = |off: bool| match off {
            true => vec!["--disable-offloads", "all"],
            false => Vec::new(),
        };
        let tunnel = Tunnel {
            name: format!("soak-{index}"),
            near: words(near),
            far: words(far),
            log: Some("info,relay_tunnel::wireguard=debug"),
            ..Tunnel::of(Route::P2p)
        };
        part(&deployment, &tunnel, name, until, progress)
    });
    Ok(Report {
        parts: parts.collect::<Result<_, _>>()?,
        stall_limit_ms: milliseconds(plan.stall),
    })
}

fn part(
    deployment: &Deployment,
    tunnel: &Tunnel,
    name: &'static str,
    until: Until,
    progress: &mut dyn Progress,
) -> Result<Part, Error> {
    let far = Far::start().map_err(Error::system("cannot start the soak's far end"))?;
    let mut open = deployment.forward(tunnel, &Hosts::Same, far.port())?;
    let keys = open.count_lines(KEYS);
    let mut told = 0;
    let mut watch = |share: f64, bytes: u64| {
        while told < (share * STEPS as f64) as usize {
            told += 1;
            progress.step(&format!("{name}: {:.1} GiB", bytes as f64 / GIB));
        }
    };
    let moved = bulk(open.local, &far, until, &mut watch);
    let moved = moved.map_err(Error::system(format!("a stream broke ({name})")))?;
    Ok(Part {
        name,
        bytes: moved.bytes,
        bad: moved.bad,
        seconds: moved.elapsed.as_secs_f64(),
        stall_ms: milliseconds(moved.stall),
        stall_at: moved.stall_at.as_secs_f64(),
        pause_ms: milliseconds(moved.pause),
        rekeys: open.count_lines(KEYS) - keys,
        rekeys_expected: rekeys_due(moved.elapsed),
    })
}

fn rekeys_due(length: Duration) -> usize {
    let settled = length.saturating_sub(REKEY_SLACK);
    (settled.as_secs() / REKEY.as_secs()) as usize
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Report {
    /// What was wrong, in words; empty when all went well.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for part in &self.parts {
            let name = part.name;
            if part.bad > 0 {
                failures.push(format!("{name}: {} bad bytes", part.bad));
            }
            if part.stall_ms > self.stall_limit_ms {
                failures.push(format!(
                    "{name}: nothing came for {:.0} ms, more than {:.0} ms, {:.1} s after the start",
                    part.stall_ms, self.stall_limit_ms, part.stall_at
                ));
            }
            if part.rekeys < part.rekeys_expected {
                failures.push(format!(
                    "{name}: keys were renewed {} times, not {}",
                    part.rekeys, part.rekeys_expected
                ));
            }
        }
        failures
    }

    /// The report as text, each line ended by a newline.
    pub fn table(&self) -> String {
        let header = [
            "soak",
            "GiB",
            "seconds",
            "Gbit/s",
            "bad bytes",
            "longest stall, ms",
            "after, s",
            "machine's own, ms",
            "rekeys",
        ];
        let mut lines = vec![header.map(str::to_owned).to_vec()];
        for part in &self.parts {
            let bytes = part.bytes as f64;
            lines.push(vec![
                part.name.to_owned(),
                format!("{:.2}", bytes / GIB),
                format!("{:.1}", part.seconds),
                format!("{:.2}", bytes * 8.0 / 1e9 / part.seconds),
                part.bad.to_string(),
                format!("{:.1}", part.stall_ms),
                format!("{:.1}", part.stall_at),
                format!("{:.1}", part.pause_ms),
                part.rekeys.to_string(),
            ]);
        }
        let mut text = aligned(&lines);
        for failure in self.failures() {
            let _ = writeln!(text, "failed: {failure}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(bad: u64, stall_ms: f64, rekeys: usize) -> Report {
        let part = Part {
            name: "offloads on",
            bytes: 1 << 30,
            bad,
            seconds: 376.0,
            stall_ms,
            stall_at: 1.0,
            pause_ms: 1.0,
            rekeys,
            rekeys_expected: rekeys_due(Duration::from_secs(376)),
        };
        Report {
            parts: vec![part],
            stall_limit_ms: 200.0,
        }
    }

    #[test]
    fn a_bad_byte_a_long_stall_or_a_missing_rekey_fails() {
        assert!(report(0, 199.0, 3).failures().is_empty());
        for bad in [report(1, 0.0, 3), report(0, 201.0, 3), report(0, 0.0, 2)] {
            assert_eq!(bad.failures().len(), 1, "{bad:?}");
            assert!(bad.table().contains("\nfailed: offloads on: "));
        }
    }

    #[test]
    fn keys_are_due_every_two_minutes() {
        let due = |seconds| rekeys_due(Duration::from_secs(seconds));
        assert_eq!((due(2), due(124), due(126), due(366)), (0, 0, 1, 3));
    }
}

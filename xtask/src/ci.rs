//! `cargo xtask ci`: the gate.

use std::time::Instant;

use anyhow::Result;

use crate::ebpf;
use crate::run::{self, cargo, checked, say, step};
use crate::test;

/// Runs all steps and prints what each took. The first failing step ends the run.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    std::env::set_current_dir(run::root())?;
    let steps: [(&str, &dyn Fn() -> Result<()>); 9] = [
        ("fmt", &|| checked(&mut cargo(&["fmt", "--all", "--check"]))),
        // First of all that compile: they use the object that it builds.
        ("ebpf", &ebpf::check),
        ("clippy", &|| {
            let words = ["clippy", "--workspace", "--all-targets"];
            checked(cargo(&words).args(["--", "-D", "warnings"]))
        }),
        ("doc", &|| {
            let words = ["doc", "--workspace", "--no-deps"];
            checked(cargo(&words).env("RUSTDOCFLAGS", "-D warnings"))
        }),
        ("test", &|| test::run(&test::Args::strict())),
        ("user stack", &test::user_stack),
        // Each benchmark once, to see that it works. With the whole workspace, as the tests are
        // built: dependencies keep their features, and nothing is built again.
        ("benches", &|| {
            checked(&mut cargo(&["test", "--workspace", "--bench", "*"]))
        }),
        ("vectors", &|| crate::vectors(None, false)),
        ("demo", &|| {
            checked(&mut cargo(&["run", "--release", "--", "demo", "--once"]))
        }),
    ];
    let mut report = Vec::new();
    for (name, work) in steps {
        let took = step(name, work)?;
        report.push(format!("{name} {:.0} s", took.as_secs_f64()));
    }
    let total = start.elapsed().as_secs_f64();
    say(format_args!(
        "== all ok, {total:.0} s: {}",
        report.join(", ")
    ));
    Ok(())
}

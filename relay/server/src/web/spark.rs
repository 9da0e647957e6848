//! Traffic as a small picture and as words.

use std::fmt::Write;
use std::time::Duration;

use crate::traffic::SLOTS;

const WIDTH: f64 = 120.0;
const HEIGHT: f64 = 28.0;

/// A line of recent traffic.
pub(super) struct Spark {
    /// Points of a polyline in a box of 120 by 28.
    pub(super) line: String,
    /// The same, closed at the bottom.
    pub(super) area: String,
    /// What it says, in words.
    pub(super) words: String,
    /// The newest rate.
    pub(super) rate: String,
}

impl Spark {
    /// The picture of bytes per slot, oldest first.
    pub(super) fn new(history: &[u64; SLOTS], slot: Duration) -> Self {
        let most = history.iter().copied().max().unwrap_or(0).max(1);
        let mut line = String::new();
        for (index, bytes) in history.iter().enumerate() {
            let x = WIDTH * index as f64 / (SLOTS - 1) as f64;
            // The square root keeps a quiet page beside a large download visible.
            let share = (*bytes as f64 / most as f64).sqrt();
            let y = HEIGHT - 1.5 - share * (HEIGHT - 3.0);
            let gap = if index == 0 { "" } else { " " };
            // Writing to a string does not fail.
            let _ = write!(line, "{gap}{x:.1},{y:.1}");
        }
        let area = format!("0,{HEIGHT} {line} {WIDTH},{HEIGHT}");
        let rate = per_second(history[SLOTS - 1], slot);
        let total = size(history.iter().sum());
        let minutes = slot.as_secs() * SLOTS as u64 / 60;
        let words = format!("{rate} now, {total} in {minutes} minutes");
        Self {
            line,
            area,
            words,
            rate,
        }
    }
}

fn per_second(bytes: u64, slot: Duration) -> String {
    format!("{}/s", size(bytes / slot.as_secs()))
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 || unit == "GB" {
            let digits = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_500), "1.5 kB");
        assert_eq!(size(123_000_000), "123 MB");
        assert_eq!(size(5_000_000_000_000), "5000 GB");
    }

    #[test]
    fn the_highest_point_is_the_busiest_slot() {
        let mut history = [0; SLOTS];
        history[SLOTS - 1] = 4_000;
        let spark = Spark::new(&history, Duration::from_secs(2));
        assert!(spark.line.starts_with("0.0,26.5 "), "{}", spark.line);
        assert!(spark.line.ends_with("120.0,1.5"), "{}", spark.line);
        assert_eq!(spark.words, "2.0 kB/s now, 4.0 kB in 2 minutes");
    }
}

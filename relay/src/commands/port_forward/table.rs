//! The table of what is forwarded, with live rates, on a terminal.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use relay_forward::{Board, Kind, Traffic};

use crate::screen;

const PERIOD: Duration = Duration::from_secs(1);
/// Lines of the terminal that the table leaves to others.
const LEFT: usize = 6;
/// Rates are of what moved in so long.
const SPAN: Duration = Duration::from_secs(2);

/// Draws the table once a second, until dropped.
pub(super) async fn draw(board: Board) {
    let mut rates = Rates::default();
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        let (columns, lines) = screen::size();
        let most = lines.saturating_sub(LEFT).max(1);
        let (traffic, count) = board.traffic(most);
        rates.note(&traffic, Instant::now());
        screen::show(table(&traffic, count, &rates, columns));
    }
}

/// How fast bytes move, by the name of the forward.
#[derive(Default)]
struct Rates(HashMap<String, Vec<(Instant, u64, u64)>>);

impl Rates {
    fn note(&mut self, traffic: &[Traffic], now: Instant) {
        self.0
            .retain(|name, _| traffic.iter().any(|known| known.row.name == *name));
        for known in traffic {
            let seen = self.0.entry(known.row.name.clone()).or_default();
            seen.push((now, known.sent, known.received));
            // The newest of those that are old enough is what the last is compared with.
            while seen.len() > 2 && now.duration_since(seen[1].0) >= SPAN {
                seen.remove(0);
            }
        }
    }

    /// Bytes a second to and from the workspace.
    fn of(&self, name: &str) -> (f64, f64) {
        let Some([(then, sent, received), .., (now, more_sent, more_received)]) =
            self.0.get(name).map(Vec::as_slice)
        else {
            return (0.0, 0.0);
        };
        let seconds = now.duration_since(*then).as_secs_f64().max(1e-3);
        let rate = |more: u64, less: u64| more.saturating_sub(less) as f64 / seconds;
        (rate(*more_sent, *sent), rate(*more_received, *received))
    }
}

fn table(traffic: &[Traffic], count: usize, rates: &Rates, columns: usize) -> Vec<String> {
    let head = [
        "FORWARD",
        "OPEN",
        "SENT",
        "RECEIVED",
        "SENT/s",
        "RECEIVED/s",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(traffic.iter().map(|known| row(known, rates)));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    // The first column gives way, so that the numbers stay.
    let numbers: usize = widths[1..].iter().map(|width| width + 2).sum();
    let first = widths[0].min(columns.saturating_sub(numbers + 1).max(12));
    let mut lines: Vec<String> = rows.iter().map(|row| line(row, &widths, first)).collect();
    match count {
        0 => lines.push("nothing is forwarded so far".to_owned()),
        more if more > traffic.len() => {
            lines.push(format!("and {} more", more - traffic.len()));
        }
        _ => {}
    }
    let fits = columns.saturating_sub(1);
    let cut = |line: String| line.chars().take(fits).collect();
    lines.into_iter().map(cut).collect()
}

fn row(traffic: &Traffic, rates: &Rates) -> [String; 6] {
    let row = &traffic.row;
    let way = match row.kind {
        Kind::Reverse => format!("{} {} -> {}", row.kind, row.there, row.here),
        _ => format!("{} {} -> {}", row.kind, row.here, row.there),
    };
    let open = match row.kind {
        Kind::Udp => "-".to_owned(),
        _ => traffic.open.to_string(),
    };
    let (sent, received) = rates.of(&row.name);
    [
        way.chars().filter(|c| !c.is_control()).collect(),
        open,
        bytes(traffic.sent as f64),
        bytes(traffic.received as f64),
        bytes(sent),
        bytes(received),
    ]
}

fn line(row: &[String; 6], widths: &[usize; 6], first: usize) -> String {
    let mut name: String = row[0].chars().take(first).collect();
    if row[0].chars().count() > first {
        name.pop();
        name.push('~');
    }
    let mut line = format!("{name:<first$}");
    for (cell, width) in row.iter().zip(widths).skip(1) {
        line.push_str(&format!("  {cell:>width$}"));
    }
    line
}

/// Bytes as people read them.
fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut count, mut unit) = (count, 0);
    while count >= 1000.0 && unit + 1 < UNITS.len() {
        count /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count:.0} B"),
        _ => format!("{count:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use relay_forward::Row;

    use super::*;

    fn traffic(name: &str, sent: u64) -> Traffic {
        Traffic {
            row: Row {
                name: name.to_owned(),
                kind: Kind::Tcp,
                here: name.to_owned(),
                there: "8000".to_owned(),
            },
            open: 1,
            connections: 3,
            sent,
            received: 0,
        }
    }

    #[test]
    fn rates_are_of_the_last_seconds() {
        let mut rates = Rates::default();
        let start = Instant::now();
        for second in 0..10 {
            let sent = 1000 * second.min(5);
            let now = start + Duration::from_secs(second);
            rates.note(&[traffic("8080", sent)], now);
        }
        assert_eq!(rates.of("8080"), (0.0, 0.0));
        rates.note(&[traffic("8080", 7000)], start + Duration::from_secs(10));
        assert_eq!(rates.of("8080"), (1000.0, 0.0));
        rates.note(&[], start);
        assert_eq!(rates.of("8080"), (0.0, 0.0));
        assert!(rates.0.is_empty());
    }

    #[test]
    fn the_table_fits_and_names_what_it_leaves_out() {
        let rates = Rates::default();
        let rows = [traffic(&"x".repeat(200), 5 << 20), traffic("8080", 999)];
        let lines = table(&rows, 7, &rates, 80);
        assert_eq!(lines.len(), 4);
        assert!(
            lines.iter().all(|line| line.chars().count() < 80),
            "{lines:#?}"
        );
        assert!(
            lines[1].contains('~') && lines[1].contains("5.0 MiB"),
            "{}",
            lines[1]
        );
        assert!(lines[2].starts_with("tcp 8080 -> 8000") && lines[2].contains("999 B"));
        assert_eq!(lines[3], "and 5 more");
        assert_eq!(table(&[], 0, &rates, 80)[1], "nothing is forwarded so far");
    }

    #[test]
    fn bytes_are_short() {
        for (count, text) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (1000.0, "1.0 KiB"),
            (1.5e9, "1.4 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}

//! The terminal table: a line a figure, a column a route; median, and the range under several
//! rounds.

use std::fmt::Write;

use super::short;
use crate::{Figure, Report, Route};

/// The table as text, each line ended by a newline.
pub fn table(report: &Report) -> String {
    let routes = report.routes();
    let mut lines = vec![header(&routes)];
    for &figure in Figure::ALL {
        let cells: Vec<String> = routes
            .iter()
            .map(|&route| cell(report, route, figure))
            .collect();
        if cells.iter().any(|cell| cell != "–") {
            let mut line = vec![report.label(figure), figure.unit().text().to_owned()];
            line.extend(cells);
            lines.push(line);
        }
    }
    let mut text = aligned(&lines);
    for (route, reason) in &report.missing {
        let _ = writeln!(text, "{route} not measured: {reason}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "{note}");
    }
    if let Some(link) = &report.link {
        let _ = writeln!(text, "emulated path: {link}");
    }
    let _ = writeln!(
        text,
        "{} rounds of {} s; {} × {}; Linux {}",
        report.rounds, report.seconds, report.cpus, report.cpu, report.kernel
    );
    text
}

fn header(routes: &[Route]) -> Vec<String> {
    let mut line = vec!["figure".to_owned(), "unit".to_owned()];
    line.extend(routes.iter().map(|route| route.name().to_owned()));
    line
}

fn cell(report: &Report, route: Route, figure: Figure) -> String {
    match report.row(route, figure) {
        None => "–".to_owned(),
        Some(row) if row.samples.len() == 1 => short(row.summary.median),
        Some(row) => format!(
            "{} [{}-{}]",
            short(row.summary.median),
            short(row.summary.min),
            short(row.summary.max)
        ),
    }
}

/// Rows of cells as text, the columns one below another.
pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(row, "{cell:<width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

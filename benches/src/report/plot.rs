//! SVG plots: grouped bars, and cumulative distributions.

use std::fmt::Write;

use super::short;

/// One bar group: a label, and a number for each series.
pub(super) struct Group<'a> {
    pub(super) label: &'a str,
    pub(super) values: Vec<Option<f64>>,
}

const COLOURS: [&str; 5] = ["#7f8c9b", "#2f6fde", "#6fa8ff", "#d08b2c", "#b4495a"];
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 40.0;

/// Grouped vertical bars; `series` names the bars of a group.
pub(super) fn bars(unit: &str, series: &[&str], groups: &[Group<'_>]) -> String {
    let top = groups
        .iter()
        .flat_map(|group| group.values.iter().flatten())
        .copied();
    let top = top.fold(0.0_f64, f64::max).max(f64::MIN_POSITIVE) * 1.1;
    let scale = (HEIGHT - TOP - BOTTOM) / top;
    let group_width = (WIDTH - LEFT) / groups.len().max(1) as f64;
    let bar = group_width * 0.8 / series.len().max(1) as f64;
    let mut svg = open(unit);
    for tick in 0..=4 {
        let value = top * f64::from(tick) / 4.0;
        grid(&mut svg, HEIGHT - BOTTOM - value * scale, &short(value));
    }
    for (at, group) in groups.iter().enumerate() {
        let x = LEFT + group_width * at as f64;
        for (index, value) in group.values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (height, colour) = (value * scale, COLOURS[index % COLOURS.len()]);
            let left = x + group_width * 0.1 + bar * index as f64;
            let y = HEIGHT - BOTTOM - height;
            let name = series.get(index).copied().unwrap_or_default();
            let _ = write!(
                svg,
                "<rect x='{left:.1}' y='{y:.1}' width='{:.1}' height='{height:.1}' \
                 fill='{colour}'><title>{name}: {} {unit}</title></rect>\
                 <text class='v' x='{:.1}' y='{:.1}'>{}</text>",
                bar * 0.92,
                short(*value),
                left + bar / 2.0,
                y - 3.0,
                short(*value)
            );
        }
        let middle = x + group_width / 2.0;
        let y = HEIGHT - BOTTOM + 18.0;
        let _ = write!(
            svg,
            "<text class='m' x='{middle:.1}' y='{y:.1}'>{}</text>",
            group.label
        );
    }
    legend(&mut svg, series);
    svg.push_str("</svg>");
    svg
}

/// Cumulative distributions on a logarithmic axis; each series holds sorted numbers above zero.
pub(super) fn distributions(unit: &str, series: &[(&str, &[f64])]) -> String {
    let all = || {
        series
            .iter()
            .flat_map(|(_, times)| times.iter())
            .copied()
            .filter(|t| *t > 0.0)
    };
    let low = all().fold(f64::INFINITY, f64::min);
    let high = all().fold(0.0_f64, f64::max);
    if !low.is_finite() || high <= low {
        return String::new();
    }
    let span = (high / low).ln();
    let x = |time: f64| LEFT + (time.max(low) / low).ln() / span * (WIDTH - LEFT - 10.0);
    let mut svg = open(unit);
    for tick in 0..=4 {
        let share = f64::from(tick) / 4.0;
        let y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
        grid(&mut svg, y, &format!("{:.0} %", share * 100.0));
    }
    for step in 0..=5 {
        let time = low * (span * f64::from(step) / 5.0).exp();
        let (at, y) = (x(time), HEIGHT - BOTTOM + 18.0);
        let _ = write!(
            svg,
            "<text class='m' x='{at:.1}' y='{y:.1}'>{}</text>",
            short(time)
        );
    }
    for (index, (_, times)) in series.iter().enumerate() {
        let mut points = String::new();
        for (rank, time) in times.iter().enumerate() {
            let share = (rank + 1) as f64 / times.len() as f64;
            let y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
            let _ = write!(points, "{:.1},{y:.1} ", x(*time));
        }
        let colour = COLOURS[index % COLOURS.len()];
        let _ = write!(
            svg,
            "<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>"
        );
    }
    let names: Vec<&str> = series.iter().map(|(name, _)| *name).collect();
    legend(&mut svg, &names);
    svg.push_str("</svg>");
    svg
}

fn open(unit: &str) -> String {
    format!(
        "<svg viewBox='0 0 {WIDTH} {}' role='img' aria-label='{unit}'>\
         <text x='4' y='14' class='u'>{unit}</text>",
        HEIGHT + 24.0
    )
}

fn grid(svg: &mut String, y: f64, label: &str) {
    let _ = write!(
        svg,
        "<line x1='{LEFT}' x2='{WIDTH}' y1='{y:.1}' y2='{y:.1}' class='g'/>\
         <text class='t' x='{:.1}' y='{:.1}'>{label}</text>",
        LEFT - 6.0,
        y + 4.0
    );
}

fn legend(svg: &mut String, names: &[&str]) {
    for (index, name) in names.iter().enumerate() {
        let (x, y) = (LEFT + 120.0 * index as f64, HEIGHT + 6.0);
        let colour = COLOURS[index % COLOURS.len()];
        let _ = write!(
            svg,
            "<rect x='{x:.1}' y='{y:.1}' width='12' height='12' fill='{colour}'/>\
             <text x='{:.1}' y='{:.1}'>{name}</text>",
            x + 17.0,
            y + 11.0
        );
    }
}

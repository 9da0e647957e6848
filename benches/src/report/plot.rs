//! SVG plots: grouped bars, and cumulative distributions.

use std::fmt::Write;

use super::short;

/// One bar group: a label, and a number for each series.
pub(super) struct Group<'a> {
    pub(super) label: &'a str,
    pub(super) values: Vec<Option<f64>>,
}

const COLOURS: [&str; 15] = [
    "#7f8c9b", "#2f6fde", "#6fa8ff", "#d08b2c", "#b4495a", "#8a5bc7", "#2a9d8f", "#5fa845",
    "#a3c65c", "#c77dbb", "#e07a5f", "#4d6a86", "#b08968", "#d9b23d", "#3d8b8b",
];
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
/// Room for the unit above the highest tick, and for a number above the highest bar.
const TOP: f64 = 34.0;
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
    let mut svg = open(unit, series.len());
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
    let mut svg = open(unit, series.len());
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

/// Names in one line of the legend, and the height of such a line.
const LEGEND: usize = 7;
const LEGEND_LINE: f64 = 18.0;

fn open(unit: &str, series: usize) -> String {
    let lines = series.div_ceil(LEGEND) as f64;
    format!(
        "<svg viewBox='0 0 {WIDTH} {}' role='img' aria-label='{unit}'>\
         <text x='4' y='14' class='u'>{unit}</text>",
        HEIGHT + 6.0 + LEGEND_LINE * lines
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
        let x = LEFT + 114.0 * (index % LEGEND) as f64;
        let y = HEIGHT + 6.0 + LEGEND_LINE * (index / LEGEND) as f64;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of an attribute, in the order of the text.
    fn numbers(svg: &str, before: &str) -> Vec<f64> {
        let texts = svg.split(before).skip(1);
        texts
            .filter_map(|text| text.split('\'').next()?.parse().ok())
            .collect()
    }

    #[test]
    fn the_unit_stands_clear_of_the_highest_tick() {
        let groups = [Group {
            label: "one",
            values: vec![Some(3.0)],
        }];
        let svg = bars("Gbit/s", &["a"], &groups);
        let ticks = numbers(&svg, " y1='");
        let highest = ticks.into_iter().fold(f64::INFINITY, f64::min);
        // The unit's baseline is at 14, and letters of 12 px end 4 px below the tick's line.
        assert!(highest + 4.0 - 12.0 > 14.0, "{highest}");
    }

    #[test]
    fn a_long_legend_takes_more_lines_and_stays_in_the_picture() {
        let names: Vec<String> = (0..14).map(|index| format!("route-{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let group = Group {
            label: "one",
            values: vec![Some(1.0); 14],
        };
        let svg = bars("ms", &names, &[group]);
        let size: Vec<f64> = svg
            .split('\'')
            .nth(1)
            .unwrap()
            .split(' ')
            .map(|number| number.parse().unwrap())
            .collect();
        let boxes = svg.split("<rect x='").skip(1);
        for (x, y) in boxes.map(|text| {
            (
                numbers(&format!("x='{text}"), "x='")[0],
                numbers(text, " y='")[0],
            )
        }) {
            assert!(x < size[2] && y + 12.0 <= size[3], "{x} {y} of {size:?}");
        }
    }
}

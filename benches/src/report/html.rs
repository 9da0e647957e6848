//! One HTML page with nothing fetched from elsewhere: plots, and every number in a table.

use std::fmt::Write;

use super::plot::{Group, bars, distributions};
use super::{short, table};
use crate::{Figure, Report};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:920px;margin:2rem auto;\
padding:0 1rem;color:#1c2733;background:#fff}svg{width:100%;height:auto}svg text{font-size:12px;\
fill:currentColor}.g{stroke:#8884}.t{text-anchor:end}.m,.v{text-anchor:middle}svg .v{font-size:9px}\
pre{overflow-x:auto}table{border-collapse:collapse}td,th{padding:.2rem .6rem;text-align:right;\
border-bottom:1px solid #8884}td:first-child,th:first-child{text-align:left}\
@media(prefers-color-scheme:dark){body{color:#dbe4ee;background:#12181f}}";

/// The page.
pub fn html(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang='en'><meta charset='utf-8'>\
         <meta name='viewport' content='width=device-width'><title>relay bench</title>\
         <style>{STYLE}</style><h1>relay bench</h1><p>{} rounds of {} s, interleaved; medians. \
         {} × {}, Linux {}. Everything ran on this one machine{}.</p>",
        report.rounds,
        report.seconds,
        report.cpus,
        escape(&report.cpu),
        escape(&report.kernel),
        match &report.link {
            Some(link) => format!(", over an emulated path: {}", escape(link)),
            None => String::new(),
        }
    );
    use Figure as F;
    let sections: [(&str, &[Figure]); 11] = [
        (
            "Throughput",
            &[F::TcpUp1, F::TcpDown1, F::TcpUp8, F::TcpDown8],
        ),
        (
            "CPU of the forwarder",
            &[F::CpuUp1, F::CpuDown1, F::CpuUp8, F::CpuDown8],
        ),
        ("Latency", &[F::PingP50, F::PingP99, F::Connect]),
        ("Connections", &[F::Connections1, F::Connections16]),
        (
            "Datagrams",
            &[F::Udp64Rate, F::Udp1200Rate, F::Udp64FastRate],
        ),
        (
            "Memory",
            &[F::MemoryIdle, F::MemoryBulk, F::Memory1000, F::MemoryAfter],
        ),
        ("HTTP requests", &[F::HttpRate1, F::HttpRate16]),
        (
            "Latency of HTTP requests",
            &[F::HttpP50, F::HttpP99, F::Http16P50, F::Http16P99],
        ),
        ("HTTP downloads and uploads", &[F::HttpDown, F::HttpUp]),
        ("CPU of these", &[F::HttpCpuDown, F::HttpCpuUp]),
        ("Memory of a WebSocket", &[F::HttpWebSocket]),
    ];
    for (title, figures) in sections {
        section(&mut page, report, title, figures);
    }
    for (title, latencies) in [
        ("Latency distribution", &report.latencies),
        (
            "Latency distribution of HTTP requests",
            &report.http_latencies,
        ),
    ] {
        let series: Vec<(&str, &[f64])> = latencies
            .iter()
            .map(|(name, times)| (name.as_str(), times.as_slice()))
            .collect();
        let plot = distributions("µs", &series);
        if !plot.is_empty() {
            let _ = write!(page, "<h2>{title}</h2>{plot}");
        }
    }
    numbers(&mut page, report);
    let _ = write!(
        page,
        "<h2>As text</h2><pre>{}</pre></html>",
        escape(&table(report))
    );
    page
}

fn section(page: &mut String, report: &Report, title: &str, figures: &[Figure]) {
    let routes = report.routes();
    let names: Vec<&str> = routes.iter().map(|route| route.name()).collect();
    let labels: Vec<String> = figures.iter().map(|&figure| report.label(figure)).collect();
    let groups: Vec<Group<'_>> = figures
        .iter()
        .zip(&labels)
        .map(|(&figure, label)| Group {
            label,
            values: routes
                .iter()
                .map(|&route| report.row(route, figure).map(|row| row.summary.median))
                .collect(),
        })
        .collect();
    if groups
        .iter()
        .any(|group| group.values.iter().any(Option::is_some))
    {
        let unit = figures.first().map_or("", |figure| figure.unit().text());
        let _ = write!(page, "<h2>{title}</h2>{}", bars(unit, &names, &groups));
    }
}

fn numbers(page: &mut String, report: &Report) {
    page.push_str(
        "<h2>All numbers</h2><table><tr><th>figure<th>route<th>median<th>min<th>max<th>unit",
    );
    for row in &report.rows {
        let _ = write!(
            page,
            "<tr title='{}'><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            escape(row.figure.about()),
            report.label(row.figure),
            row.route,
            short(row.summary.median),
            short(row.summary.min),
            short(row.summary.max),
            row.unit
        );
    }
    page.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::statistics::Summary;
    use crate::{Route, Row};

    fn report() -> Report {
        let row = |route, median: f64| Row {
            route,
            figure: Figure::TcpUp1,
            unit: Figure::TcpUp1.unit().text(),
            samples: vec![median],
            summary: Summary {
                median,
                min: median,
                max: median,
            },
        };
        Report {
            kernel: "6.1".into(),
            cpu: "a <fast> one".into(),
            cpus: 2,
            seconds: 1.0,
            rounds: 1,
            link: None,
            bulk_gib: 1.0,
            notes: vec!["socat: tcp-up8 failed".into()],
            rows: vec![row(Route::Direct, 20.0), row(Route::Ssh, 3.5)],
            missing: BTreeMap::new(),
            latencies: BTreeMap::from([("ssh".into(), vec![10.0, 20.0, 40.0])]),
            http_latencies: BTreeMap::new(),
        }
    }

    #[test]
    fn the_page_fetches_nothing_and_escapes_what_it_quotes() {
        let page = html(&report());
        assert!(!page.contains("http"), "{page}");
        assert!(page.contains("a &lt;fast&gt; one"));
        assert!(page.contains("<polyline"));
    }

    #[test]
    fn the_table_has_a_column_a_route_and_leaves_out_empty_figures() {
        let text = table(&report());
        assert!(text.starts_with("figure   unit    direct  ssh\n"), "{text}");
        assert!(text.contains("tcp-up1  Gbit/s  20.0    3.50\n"), "{text}");
        assert!(!text.contains("udp64"));
        assert!(text.contains("\nsocat: tcp-up8 failed\n"), "{text}");
    }
}

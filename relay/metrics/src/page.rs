//! The text format of Prometheus, version 0.0.4 (prometheus.io, "Exposition formats").

use std::fmt::Write as _;

/// What a figure does over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from the start of the process on.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A metric: its name, what it is, and one sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// With its unit at the end, and `_total` behind a counter's.
    pub name: &'static str,
    /// What it does over time.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
}

/// Metrics with their values at one moment.
#[derive(Clone, Debug, Default)]
pub struct Page(String);

impl Metric {
    /// A counter.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        let kind = Kind::Counter;
        Self { name, kind, help }
    }

    /// A gauge.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        let kind = Kind::Gauge;
        Self { name, kind, help }
    }
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

impl Page {
    /// A metric with one value.
    pub fn put(&mut self, metric: &Metric, value: f64) {
        self.head(metric);
        self.sample(metric, &[], value);
    }

    /// A metric with a value for each value of a label. It is on the page without any, too.
    pub fn put_by<'a>(
        &mut self,
        metric: &Metric,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) {
        self.head(metric);
        for (name, value) in values {
            self.sample(metric, &[(label, name)], value);
        }
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.0
    }

    fn head(&mut self, metric: &Metric) {
        let Metric { name, kind, help } = metric;
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {}", escaped(help, false));
        let _ = writeln!(self.0, "# TYPE {name} {}", kind.as_str());
    }

    fn sample(&mut self, metric: &Metric, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(metric.name);
        if !labels.is_empty() {
            let labels = labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true)));
            let _ = write!(self.0, "{{{}}}", labels.collect::<Vec<_>>().join(","));
        }
        let _ = writeln!(self.0, " {value}");
    }
}

fn escaped(text: &str, quoted: bool) -> String {
    let text = text.replace('\\', r"\\").replace('\n', r"\n");
    match quoted {
        true => text.replace('"', "\\\""),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: Metric = Metric::counter("x_bytes_total", "Bytes \\ of x.");

    #[test]
    fn values_stand_below_their_metric() {
        let mut page = Page::default();
        page.put(&BYTES, 12_345_678_901.0);
        page.put_by(
            &Metric::gauge("y", "Y."),
            "way",
            [("a\"b\n", 0.5), ("c", 2.0)],
        );
        let expected = "# HELP x_bytes_total Bytes \\\\ of x.\n\
                        # TYPE x_bytes_total counter\n\
                        x_bytes_total 12345678901\n\
                        # HELP y Y.\n\
                        # TYPE y gauge\n\
                        y{way=\"a\\\"b\\n\"} 0.5\n\
                        y{way=\"c\"} 2\n";
        assert_eq!(page.text(), expected);
    }
}

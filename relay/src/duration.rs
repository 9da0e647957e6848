//! Spans of time on the command line, written as Coder's flags take them: `5s`, `500ms`, `1m30s`.

use std::time::Duration;

/// Reads a span: numbers with a unit (ms, s, m, h), one behind the other; `0` needs none.
///
/// # Errors
/// With a sentence about what is wrong.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a span of time such as 5s, 500ms or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let number_ends = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(number_ends);
        let unit_ends = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_ends);
        let seconds = match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        sum = sum.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    match text.is_empty() {
        true => Err(wrong()),
        false => Ok(sum),
    }
}

/// The same, longer than nothing.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err(format!("\"{text}\" is no time at all; give more")),
        span => Ok(span),
    }
}

/// Milliseconds with three digits behind the point, for JSON and for people.
pub(crate) fn milliseconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_coder_writes_them() {
        for (text, span) in [
            ("0", 0),
            ("5s", 5_000),
            ("500ms", 500),
            ("1.5s", 1_500),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(span)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "5x",
            "-1s",
            "1..s",
            "5 s",
            "1e999s",
            "999999999999999999999h",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert!(parse_positive("0s").is_err());
    }
}

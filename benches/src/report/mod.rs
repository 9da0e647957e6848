//! What a [`Report`](crate::Report) looks like: a terminal table, and a self-contained HTML page.

mod html;
mod plot;
mod table;

pub use html::html;
pub(crate) use table::aligned;
pub use table::table;

/// A number with three significant digits.
fn short(number: f64) -> String {
    match number.abs() {
        n if n >= 100.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

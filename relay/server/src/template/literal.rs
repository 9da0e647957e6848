//! Values that need no evaluation.

use hcl_edit::Number;
use hcl_edit::expr::{Expression, UnaryOperator};
use hcl_edit::template::Element;

/// A value as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    /// As if the attribute were not there.
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
}

impl Literal {
    /// The value of an expression; `None` when it is to be computed, or is a list or object.
    pub(super) fn of(value: &Expression) -> Option<Self> {
        Some(match value {
            Expression::Null(_) => Self::Null,
            Expression::Bool(value) => Self::Bool(*value.value()),
            Expression::Number(value) => Self::Number(*value.value()),
            Expression::String(value) => Self::Text(value.value().clone()),
            Expression::StringTemplate(template) => Self::Text(joined(template.iter())?),
            Expression::HeredocTemplate(heredoc) => Self::Text(joined(heredoc.template.iter())?),
            Expression::Parenthesis(inner) => return Self::of(inner.inner()),
            Expression::UnaryOp(operation) if *operation.operator.value() == UnaryOperator::Neg => {
                match Self::of(&operation.expr)? {
                    Self::Number(value) => Self::Number(-value),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// As text; Terraform turns numbers and booleans into it.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Number(value) => Some(value.to_string()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Null => None,
        }
    }

    /// As a boolean, which may be quoted.
    pub(super) fn boolean(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// As an integer, which may be quoted.
    pub(super) fn integer(&self) -> Option<i64> {
        match self {
            Self::Number(value) => value.as_i64(),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }
}

fn joined<'a>(elements: impl Iterator<Item = &'a Element>) -> Option<String> {
    elements
        .map(|element| element.as_literal().map(|text| text.value().as_str()))
        .collect()
}

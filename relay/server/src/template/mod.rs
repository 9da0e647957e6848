//! Templates in Terraform's language: `coder_agent` and `coder_app` resources, with literal values.
//! Everything else in the file is left alone, and nothing is evaluated.

mod app;
mod literal;
#[cfg(test)]
mod tests;

use hcl_edit::Span;
use hcl_edit::expr::{Expression, Traversal, TraversalOperator};
use hcl_edit::parser::parse_body;
use hcl_edit::structure::{Attribute, Block, Body};

use crate::apps::access::ShareLevel;
use crate::apps::names;
use crate::store::{App, Definition, check_name};
use literal::Literal;

/// A mistake in a template, with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TemplateError {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not the language at all.
    #[error("this is not Terraform's language: {0}")]
    Syntax(String),
    /// A value that Terraform would have to compute.
    #[error("{0} is not a literal; relay evaluates nothing, so write the value itself")]
    NotLiteral(String),
    /// A literal of the wrong kind.
    #[error("{0} must be {1}")]
    Kind(String, &'static str),
    /// A value that is not allowed.
    #[error("{attribute} {value:?} is not allowed: {rule}")]
    Value {
        /// The attribute.
        attribute: &'static str,
        /// Its value.
        value: String,
        /// What would be.
        rule: String,
    },
    /// A required attribute is not there.
    #[error("{0} has no {1}, which is required")]
    Missing(String, &'static str),
    /// An attribute or block that such a resource does not have.
    #[error("coder_app has no {0}; was something else meant?")]
    Unknown(String),
    /// Two attributes that exclude each other.
    #[error("{0} and {1} exclude each other; keep one")]
    Exclusive(&'static str, &'static str),
    /// The same slug or agent twice, or a block that may be there once.
    #[error("{0} is there twice; keep one")]
    Twice(String),
    /// `for_each`, or a count that is not known.
    #[error("{0} makes a number of resources that only Terraform knows; write each by itself")]
    Many(&'static str),
    /// `agent_id` that names no agent.
    #[error("agent_id must be coder_agent.NAME.id with an agent of this file, or an agent's name")]
    Agent,
}

type Result<T, E = TemplateError> = std::result::Result<T, E>;

/// Largest file that is read.
pub const LARGEST: usize = 1 << 20;

/// Reads a template.
///
/// # Errors
/// The first mistake, with its line.
pub fn parse(text: &str) -> Result<Definition> {
    Source { text }.definition()
}

struct Source<'a> {
    text: &'a str,
}

impl Source<'_> {
    fn definition(&self) -> Result<Definition> {
        let body = parse_body(self.text).map_err(|error| TemplateError {
            line: error.location().line(),
            problem: Problem::Syntax(error.message().replace('\n', ", ")),
        })?;
        let mut definition = Definition::default();
        for (block, name) in resources(&body, "coder_agent") {
            if self.is_made(block)? {
                self.agent(block, name, &mut definition.agents)?;
            }
        }
        // A file without agents is about those that its apps name.
        let complete = !definition.agents.is_empty();
        for (block, _) in resources(&body, "coder_app") {
            if !self.is_made(block)? {
                continue;
            }
            let app = self.app(block)?;
            if !definition.agents.contains(&app.agent) {
                if complete {
                    return Err(self.error(block.body.get_attribute("agent_id"), Problem::Agent));
                }
                definition.agents.push(app.agent.clone());
            }
            if definition.apps.iter().any(|other| other.slug == app.slug) {
                let problem = Problem::Twice(format!("slug {:?}", app.slug));
                return Err(self.error(block.body.get_attribute("slug"), problem));
            }
            definition.apps.push(app);
        }
        Ok(definition)
    }

    fn agent(&self, block: &Block, name: &str, agents: &mut Vec<String>) -> Result<()> {
        let twice = |other: &String| other.eq_ignore_ascii_case(name);
        if agents.iter().any(twice) {
            return Err(self.error(Some(block), Problem::Twice(format!("agent {name:?}"))));
        }
        if check_name("agent", name).is_err() {
            return Err(self.error(Some(block), agent_name(name)));
        }
        agents.push(name.to_owned());
        Ok(())
    }

    /// Whether a resource is there at all: `count` may say no.
    fn is_made(&self, block: &Block) -> Result<bool> {
        if let Some(attribute) = block.body.get_attribute("for_each") {
            return Err(self.error(Some(attribute), Problem::Many("for_each")));
        }
        let Some(attribute) = block.body.get_attribute("count") else {
            return Ok(true);
        };
        // One for each started workspace: what templates write so that a stopped one has none.
        if path(&attribute.value).is_some_and(|path| path.ends_with("start_count")) {
            return Ok(true);
        }
        match Literal::of(&attribute.value).and_then(|literal| literal.integer()) {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(self.error(Some(attribute), Problem::Many("count"))),
        }
    }

    fn error(&self, place: Option<&impl Span>, problem: Problem) -> TemplateError {
        let at = place.and_then(Span::span).map_or(0, |span| span.start);
        let before = self.text.get(..at).unwrap_or_default();
        TemplateError {
            line: before.matches('\n').count() + 1,
            problem,
        }
    }

    /// The agent that an app names.
    fn agent_of(&self, attribute: &Attribute) -> Result<String> {
        let value = &attribute.value;
        let error = |problem| self.error(Some(attribute), problem);
        if let Some(path) = path(value) {
            let name = path
                .trim_start_matches("resource.")
                .strip_prefix("coder_agent.")
                .and_then(|rest| rest.strip_suffix(".id"));
            return name
                .filter(|name| check_name("agent", name).is_ok())
                .map(str::to_owned)
                .ok_or_else(|| error(Problem::Agent));
        }
        let literal = Literal::of(value).ok_or_else(|| error(Problem::Agent))?;
        let Some(name) = literal.text() else {
            return Err(error(Problem::Agent));
        };
        match check_name("agent", &name) {
            Ok(()) => Ok(name),
            Err(_) => Err(error(agent_name(&name))),
        }
    }
}

fn agent_name(name: &str) -> Problem {
    Problem::Value {
        attribute: "agent name",
        value: name.to_owned(),
        rule: "use 1 to 32 letters and digits, with single hyphens between them".to_owned(),
    }
}

fn resources<'a>(body: &'a Body, kind: &'a str) -> impl Iterator<Item = (&'a Block, &'a str)> + 'a {
    body.get_blocks("resource")
        .filter_map(move |block| match &block.labels[..] {
            [found, name] if found.as_str() == kind => Some((block, name.as_str())),
            _ => None,
        })
}

/// A reference such as `a.b.c` as its text, indices left out.
fn path(value: &Expression) -> Option<String> {
    let traversal: &Traversal = match value {
        Expression::Traversal(traversal) => traversal,
        Expression::Parenthesis(inner) => return path(inner.inner()),
        // What the language had before references stood by themselves: "${a.b.c}".
        Expression::StringTemplate(template) => {
            let mut elements = template.iter();
            return match (elements.next(), elements.next()) {
                (Some(only), None) => path(&only.as_interpolation()?.expr),
                _ => None,
            };
        }
        _ => return None,
    };
    let Expression::Variable(first) = &traversal.expr else {
        return None;
    };
    let mut text = first.as_str().to_owned();
    for operator in &traversal.operators {
        match operator.value() {
            TraversalOperator::GetAttr(name) => {
                text.push('.');
                text.push_str(name.as_str());
            }
            TraversalOperator::Index(_) | TraversalOperator::LegacyIndex(_) => {}
            TraversalOperator::AttrSplat(_) | TraversalOperator::FullSplat(_) => return None,
        }
    }
    Some(text)
}

//! One `coder_app`.

use url::Url;

use super::*;
use crate::store::{HealthCheck, OpenIn};

/// Everything that a `coder_app` may have, besides what Terraform gives each resource.
const ATTRIBUTES: [&str; 15] = [
    "agent_id",
    "slug",
    "display_name",
    "icon",
    "url",
    "command",
    "subdomain",
    "share",
    "external",
    "order",
    "group",
    "hidden",
    "tooltip",
    "open_in",
    // What older versions of the provider had.
    "name",
];
const META: [&str; 4] = ["count", "for_each", "depends_on", "provider"];
const META_BLOCKS: [&str; 3] = ["lifecycle", "provisioner", "connection"];

const LONGEST_NAME: usize = 64;
const LONGEST_TOOLTIP: usize = 2048;

impl Source<'_> {
    pub(super) fn app(&self, block: &Block) -> Result<App> {
        let body = &block.body;
        self.check_known(body)?;
        self.check_exclusive(body)?;
        let agent_id = self.required(block, "coder_app", "agent_id")?;
        let slug = self.required(block, "coder_app", "slug")?;
        let slug = self.text(slug)?.unwrap_or_default();
        let slug_rule = "use lower-case letters and digits, with single hyphens between them";
        self.check(body, "slug", &slug, names::is_slug(&slug), slug_rule)?;
        let display_name = match self.optional(body, "display_name")? {
            Some(name) => Some(name),
            None => self.optional(body, "name")?,
        };
        let display_name = display_name.unwrap_or_else(|| slug.clone());
        self.check_length(body, "display_name", &display_name, LONGEST_NAME)?;
        let group = self.optional(body, "group")?.unwrap_or_default();
        self.check_length(body, "group", &group, LONGEST_NAME)?;
        let tooltip = self.optional(body, "tooltip")?.unwrap_or_default();
        self.check_length(body, "tooltip", &tooltip, LONGEST_TOOLTIP)?;
        let external = self.boolean(body, "external")?;
        let command = self.optional(body, "command")?.unwrap_or_default();
        let url = self.optional(body, "url")?.unwrap_or_default();
        if command.is_empty() {
            self.required(block, "coder_app without command", "url")?;
            let rule = url_rule(external);
            self.check(body, "url", &url, is_url(&url, external), rule)?;
        }
        Ok(App {
            agent: self.agent_of(agent_id)?,
            display_name,
            icon: self.optional(body, "icon")?.unwrap_or_default(),
            url,
            command,
            external,
            subdomain: self.boolean(body, "subdomain")?,
            share: self.share(body)?,
            healthcheck: self.healthcheck(body)?,
            order: self.order(body)?,
            group,
            hidden: self.boolean(body, "hidden")?,
            tooltip,
            open_in: self.open_in(body)?,
            slug,
            ..App::default()
        })
    }

    fn check_known(&self, body: &Body) -> Result<()> {
        for attribute in body.attributes() {
            let name = attribute.key.as_str();
            if !ATTRIBUTES.contains(&name) && !META.contains(&name) {
                let problem = Problem::Unknown(format!("attribute {name:?}"));
                return Err(self.error(Some(attribute), problem));
            }
        }
        for block in body.blocks() {
            let name = block.ident.as_str();
            if name != "healthcheck" && !META_BLOCKS.contains(&name) {
                let problem = Problem::Unknown(format!("block {name:?}"));
                return Err(self.error(Some(block), problem));
            }
        }
        match body.get_blocks("healthcheck").nth(1) {
            Some(second) => Err(self.error(Some(second), Problem::Twice("healthcheck".into()))),
            None => Ok(()),
        }
    }

    fn check_exclusive(&self, body: &Body) -> Result<()> {
        let excluded: &[(&'static str, &'static str)] = &[
            ("command", "url"),
            ("command", "subdomain"),
            ("external", "command"),
            ("external", "subdomain"),
            ("external", "share"),
        ];
        for (one, other) in excluded {
            if let (Some(_), Some(attribute)) = (self.set(body, one), self.set(body, other)) {
                return Err(self.error(Some(attribute), Problem::Exclusive(one, other)));
            }
        }
        for one in ["command", "external"] {
            let block = body.get_blocks("healthcheck").next();
            if let (Some(_), Some(block)) = (self.set(body, one), block) {
                return Err(self.error(Some(block), Problem::Exclusive(one, "healthcheck")));
            }
        }
        Ok(())
    }

    /// An attribute that is there and says something: not null, and `external` not false.
    fn set<'a>(&self, body: &'a Body, name: &str) -> Option<&'a Attribute> {
        body.get_attribute(name).filter(|attribute| {
            let literal = Literal::of(&attribute.value);
            let off = name == "external" && literal == Some(Literal::Bool(false));
            !off && literal != Some(Literal::Null)
        })
    }

    fn required<'a>(
        &self,
        block: &'a Block,
        what: &str,
        name: &'static str,
    ) -> Result<&'a Attribute> {
        let found = self.set(&block.body, name);
        found.ok_or_else(|| self.error(Some(block), Problem::Missing(what.to_owned(), name)))
    }

    fn text(&self, attribute: &Attribute) -> Result<Option<String>> {
        let literal = self.literal(attribute)?;
        Ok(literal.text())
    }

    fn literal(&self, attribute: &Attribute) -> Result<Literal> {
        let name = attribute.key.as_str();
        let problem = match &attribute.value {
            Expression::Array(_) | Expression::Object(_) => {
                Problem::Kind(name.to_owned(), "a single value")
            }
            value => match Literal::of(value) {
                Some(literal) => return Ok(literal),
                None => Problem::NotLiteral(name.to_owned()),
            },
        };
        Err(self.error(Some(attribute), problem))
    }

    fn optional(&self, body: &Body, name: &str) -> Result<Option<String>> {
        match body.get_attribute(name) {
            Some(attribute) => self.text(attribute),
            None => Ok(None),
        }
    }

    fn boolean(&self, body: &Body, name: &str) -> Result<bool> {
        let Some(attribute) = self.set(body, name) else {
            return Ok(false);
        };
        let literal = self.literal(attribute)?;
        let problem = || Problem::Kind(name.to_owned(), "true or false");
        literal
            .boolean()
            .ok_or_else(|| self.error(Some(attribute), problem()))
    }

    fn order(&self, body: &Body) -> Result<i64> {
        let Some(attribute) = self.set(body, "order") else {
            return Ok(0);
        };
        let problem = || Problem::Kind("order".into(), "a whole number");
        let literal = self.literal(attribute)?;
        literal
            .integer()
            .ok_or_else(|| self.error(Some(attribute), problem()))
    }

    fn share(&self, body: &Body) -> Result<ShareLevel> {
        let text = self.optional(body, "share")?;
        let text = text.unwrap_or_else(|| ShareLevel::Owner.to_string());
        let level = text.parse().ok();
        let level = level.filter(|level| *level != ShareLevel::Organization);
        let rule = "there are owner, authenticated and public";
        self.check(body, "share", &text, level.is_some(), rule)?;
        Ok(level.unwrap_or_default())
    }

    fn open_in(&self, body: &Body) -> Result<OpenIn> {
        let text = self.optional(body, "open_in")?;
        let text = text.unwrap_or_else(|| OpenIn::default().as_str().to_owned());
        let both = [OpenIn::SlimWindow, OpenIn::Tab];
        let found = both.into_iter().find(|open_in| open_in.as_str() == text);
        let rule = "there are slim-window and tab";
        self.check(body, "open_in", &text, found.is_some(), rule)?;
        Ok(found.unwrap_or_default())
    }

    fn healthcheck(&self, body: &Body) -> Result<Option<HealthCheck>> {
        let Some(block) = body.get_blocks("healthcheck").next() else {
            return Ok(None);
        };
        let url = self.text(self.required(block, "healthcheck", "url")?)?;
        let url = url.unwrap_or_default();
        let rule = url_rule(false);
        self.check(&block.body, "url", &url, is_url(&url, false), rule)?;
        let number = |name| {
            let attribute = self.required(block, "healthcheck", name)?;
            let literal = self.literal(attribute)?;
            let number = literal.integer().and_then(|n| u32::try_from(n).ok());
            let problem = || Problem::Kind(name.to_owned(), "a whole number, not negative");
            number.ok_or_else(|| self.error(Some(attribute), problem()))
        };
        Ok(Some(HealthCheck {
            interval: number("interval")?,
            threshold: number("threshold")?,
            url,
        }))
    }

    fn check(
        &self,
        body: &Body,
        attribute: &'static str,
        value: &str,
        allowed: bool,
        rule: impl Into<String>,
    ) -> Result<()> {
        if allowed {
            return Ok(());
        }
        let problem = Problem::Value {
            attribute,
            value: value.chars().take(LONGEST_NAME).collect(),
            rule: rule.into(),
        };
        Err(self.error(body.get_attribute(attribute), problem))
    }

    fn check_length(
        &self,
        body: &Body,
        attribute: &'static str,
        value: &str,
        longest: usize,
    ) -> Result<()> {
        let length = value.chars().count();
        let rule = format!("it has {length} characters; use at most {longest}");
        self.check(body, attribute, value, length <= longest, rule)
    }
}

fn url_rule(external: bool) -> &'static str {
    match external {
        true => "give a whole address, such as https://example.com/",
        false => "give an http or https address, such as http://localhost:3000",
    }
}

/// Whether a browser or an agent may be sent there. An address with a scheme that runs in the
/// page it is on is none.
fn is_url(text: &str, external: bool) -> bool {
    let Ok(url) = Url::parse(text) else {
        return false;
    };
    match url.scheme() {
        "http" | "https" => url.has_host(),
        "javascript" | "data" | "vbscript" | "blob" => false,
        _ => external,
    }
}

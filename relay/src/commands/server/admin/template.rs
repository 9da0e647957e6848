//! `relay server template`: what workspaces are made of, and how far their ports may be shared.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use relay_server::apps::access::ShareLevel;
use relay_server::template::{LARGEST, parse};
use relay_server::{CorsBehavior, Definition, Error, Store, Template};
use serde_json::{Value, json};

use super::{Output, table};
use crate::output;

#[derive(clap::Subcommand)]
pub(in super::super) enum TemplateCommand {
    /// Read a template from a Terraform file; one of that name is replaced and keeps its settings.
    Add {
        /// File with `coder_agent` and `coder_app` resources, their values literal
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Name of the template
        #[arg(long, value_name = "NAME")]
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// List templates.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Change the settings of a template, for all of its workspaces at once.
    Set {
        /// Name of the template
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a template that no workspace uses.
    #[command(visible_alias = "rm")]
    Delete {
        /// Name of the template
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = true)]
pub(in super::super) struct Settings {
    /// How far ports may be shared: owner, organization, authenticated or public
    #[arg(long, value_name = "LEVEL")]
    max_share_level: Option<ShareLevel>,
    /// Who answers cross-origin requests: `simple` lets apps of one user call each other,
    /// `passthru` leaves it to the app
    #[arg(long, value_name = "BEHAVIOR")]
    cors_behavior: Option<CorsBehavior>,
}

pub(super) async fn run(store: &Store, command: TemplateCommand) -> anyhow::Result<()> {
    match command {
        TemplateCommand::Add { file, name, output } => {
            let definition = read(&file)?;
            let added = store.add_template(&name, &definition).await?;
            let text = format!(
                "template {name} added: agents {}; apps {}",
                listed(&definition.agents),
                listed(&slugs(&definition))
            );
            output.print(text, &value(&added, &definition))
        }
        TemplateCommand::List { output } => list(store, &output).await,
        TemplateCommand::Set {
            name,
            settings,
            output,
        } => {
            let id = find(store, &name).await?.id;
            let (maximum, cors) = (settings.max_share_level, settings.cors_behavior);
            store.set_template(id, maximum, cors).await?;
            let changed = find(store, &name).await?;
            let text = format!(
                "template {name}: ports may be shared up to {}, cross-origin requests {}",
                changed.max_share_level,
                changed.cors_behavior.as_str()
            );
            output.print(text, &value(&changed, &store.definition(id).await?))
        }
        TemplateCommand::Delete { name } => {
            store.delete_template(&find(store, &name).await?).await?;
            output::result(format_args!("template {name} deleted"))
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Definition> {
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the template file {shown}"))?;
    ensure!(
        text.len() <= LARGEST,
        "the template file {shown} has {} bytes; use at most {LARGEST}",
        text.len()
    );
    parse(&text).with_context(|| format!("cannot use the template file {shown}"))
}

async fn list(store: &Store, output: &Output) -> anyhow::Result<()> {
    let mut table = table(["TEMPLATE", "MAX SHARE LEVEL", "CORS", "AGENTS", "APPS"]);
    let mut all = Vec::new();
    for template in store.templates().await? {
        let definition = store.definition(template.id).await?;
        table.add_row([
            template.name.clone(),
            template.max_share_level.to_string(),
            template.cors_behavior.as_str().to_owned(),
            definition.agents.join(", "),
            slugs(&definition).join(", "),
        ]);
        all.push(value(&template, &definition));
    }
    output.print(table, &Value::Array(all))
}

/// The template of that name.
pub(super) async fn find(store: &Store, name: &str) -> Result<Template, Error> {
    let found = store.template_by_name(name).await?;
    found.ok_or_else(|| Error::Missing {
        what: "template",
        name: name.to_owned(),
        list: "template list",
    })
}

fn slugs(definition: &Definition) -> Vec<String> {
    let apps = definition.apps.iter();
    apps.map(|app| app.slug.clone()).collect()
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}

fn value(template: &Template, definition: &Definition) -> Value {
    json!({
        "id": template.id,
        "name": template.name,
        "max_share_level": template.max_share_level,
        "cors_behavior": template.cors_behavior.as_str(),
        "agents": definition.agents,
        "apps": slugs(definition),
        "created_at": template.created_at,
        "updated_at": template.updated_at,
    })
}

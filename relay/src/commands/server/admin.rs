//! Accounts, tokens and workspaces, changed in the database whether the server runs or not.

mod template;

use std::io::BufRead;
use std::path::Path;

use anyhow::{Context, ensure};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use relay_server::{
    CreatedWorkspace, DEFAULT_AGENT, Error, Store, Transition, User, Workspace, WorkspaceFilter,
};
use serde_json::{Value, json};

use crate::output::{self, Format};

/// What is managed.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Manage accounts.
    #[command(subcommand)]
    User(UserCommand),
    /// Manage session tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Manage workspaces.
    #[command(subcommand)]
    Workspace(WorkspaceCommand),
    /// Manage templates: the agents and apps that workspaces are made of.
    #[command(subcommand)]
    Template(template::TemplateCommand),
}

#[derive(clap::Subcommand)]
pub(super) enum UserCommand {
    /// Create an account.
    Create {
        /// Name of the user
        #[arg(value_name = "NAME")]
        name: String,
        /// E-mail address, to log in with
        #[arg(long, value_name = "ADDRESS")]
        email: String,
        #[command(flatten)]
        password: Password,
        /// May see and reach the workspaces of others
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List accounts.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        output: Output,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Password {
    /// The password, 6 to 64 characters; others on this machine may see it
    #[arg(long, value_name = "PASSWORD")]
    password: Option<String>,
    /// Read the password from the first line of standard input
    #[arg(long)]
    password_stdin: bool,
}

#[derive(clap::Subcommand)]
pub(super) enum TokenCommand {
    /// Print a new session token of a user, and nothing else.
    Create {
        /// Name of the user
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(clap::Subcommand)]
pub(super) enum WorkspaceCommand {
    /// Create a workspace; prints the tokens of its agents, this one time.
    Create {
        /// Owner and name
        #[arg(value_name = "OWNER/NAME")]
        name: String,
        /// Name of an agent; may be repeated [default: the template's, or main]
        #[arg(long = "agent", value_name = "NAME")]
        agents: Vec<String>,
        /// Name of a template, for its agents and apps
        #[arg(long, value_name = "NAME")]
        template: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Replace a workspace's agents: same names, or those its template has now, new ids and tokens.
    Rebuild {
        /// Owner and name
        #[arg(value_name = "OWNER/NAME")]
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// List workspaces.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Delete a workspace.
    #[command(visible_alias = "rm")]
    Delete {
        /// Owner and name
        #[arg(value_name = "OWNER/NAME")]
        name: String,
    },
}

#[derive(clap::Args)]
pub(super) struct Output {
    /// How to print
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    format: Format,
}

impl Output {
    fn print(&self, text: impl std::fmt::Display, value: &Value) -> anyhow::Result<()> {
        match self.format {
            Format::Text => output::result(text),
            Format::Json => output::json(value),
        }
    }
}

/// Runs a command.
pub(super) async fn run(command: Command, data_dir: &Path) -> anyhow::Result<()> {
    let store = Store::open(data_dir).await?;
    let done = match command {
        Command::User(command) => user(&store, command).await,
        Command::Token(TokenCommand::Create { name }) => token(&store, &name).await,
        Command::Workspace(command) => workspace(&store, command).await,
        Command::Template(command) => template::run(&store, command).await,
    };
    store.close().await;
    done
}

async fn user(store: &Store, command: UserCommand) -> anyhow::Result<()> {
    match command {
        UserCommand::Create {
            name,
            email,
            password,
            admin,
            output,
        } => {
            let password = password.read()?;
            let made = store.create_user(&name, &email, &password, admin).await?;
            output.print(format_args!("user {name} created"), &user_json(&made))
        }
        UserCommand::List { output } => {
            let users = store.users().await?;
            let mut table = table(["NAME", "E-MAIL", "ROLE"]);
            for user in &users {
                let role = if user.is_admin { "admin" } else { "member" };
                table.add_row([&user.username, &user.email, role]);
            }
            output.print(table, &users.iter().map(user_json).collect())
        }
    }
}

fn user_json(user: &User) -> Value {
    json!({
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "admin": user.is_admin,
        "created_at": user.created_at,
    })
}

impl Password {
    fn read(&self) -> anyhow::Result<String> {
        if let Some(password) = &self.password {
            return Ok(password.clone());
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        read.context("cannot read the password from standard input")?;
        let password = line.trim_end_matches(['\r', '\n']);
        ensure!(
            !password.is_empty(),
            "no password on standard input: pipe one line to --password-stdin"
        );
        Ok(password.to_owned())
    }
}

async fn token(store: &Store, name: &str) -> anyhow::Result<()> {
    let user = find_user(store, name).await?;
    output::result(store.create_token(user.id).await?)
}

async fn workspace(store: &Store, command: WorkspaceCommand) -> anyhow::Result<()> {
    match command {
        WorkspaceCommand::Create {
            name,
            mut agents,
            template,
            output,
        } => {
            let (owner, short) = split(&name)?;
            let owner = find_user(store, owner).await?.id;
            let made = if let Some(template) = template {
                let template = template::find(store, &template).await?;
                let made = store.create_workspace_from(owner, short, &template, &agents);
                made.await?
            } else {
                if agents.is_empty() {
                    agents.push(DEFAULT_AGENT.to_owned());
                }
                store.create_workspace(owner, short, &agents).await?
            };
            print_made(&output, &name, "created", &made)
        }
        WorkspaceCommand::Rebuild { name, output } => {
            let found = find_workspace(store, &name).await?;
            let made = store.rebuild_workspace(&found).await?;
            print_made(&output, &name, "rebuilt", &made)
        }
        WorkspaceCommand::List { output } => {
            let filter = WorkspaceFilter::default();
            let found = store.workspaces(&filter).await?;
            list(&found, &output)
        }
        WorkspaceCommand::Delete { name } => {
            let found = find_workspace(store, &name).await?;
            store.delete_workspace(found.id).await?;
            output::result(format_args!("workspace {name} deleted"))
        }
    }
}

fn print_made(
    output: &Output,
    name: &str,
    done: &str,
    made: &CreatedWorkspace,
) -> anyhow::Result<()> {
    let mut text = format!("workspace {name} {done}");
    for agent in &made.agents {
        text.push_str(&format!(
            "\nagent {}: relay agent --url URL --token {}",
            agent.name, agent.token
        ));
    }
    let agents = made.agents.iter();
    let agents: Vec<_> = agents
        .map(|agent| json!({"name": agent.name, "id": agent.id, "token": agent.token}))
        .collect();
    output.print(text, &json!({"id": made.id, "agents": agents}))
}

fn list(workspaces: &[Workspace], output: &Output) -> anyhow::Result<()> {
    let mut table = table(["WORKSPACE", "TEMPLATE", "STATE", "BUILD", "AGENTS"]);
    let mut all = Vec::new();
    for workspace in workspaces {
        let agents = workspace.agents.iter();
        let names: Vec<_> = agents.clone().map(|agent| agent.name.as_str()).collect();
        let template = workspace.template.as_ref();
        table.add_row([
            format!("{}/{}", workspace.owner_name, workspace.name),
            template.map_or_else(|| "-".to_owned(), |template| template.name.clone()),
            match workspace.build.transition {
                Transition::Start => "running".to_owned(),
                Transition::Stop => "stopped".to_owned(),
            },
            workspace.build.number.to_string(),
            names.join(", "),
        ]);
        let agents: Vec<_> = agents
            .map(|agent| json!({"name": agent.name, "id": agent.id}))
            .collect();
        all.push(json!({
            "id": workspace.id,
            "owner": workspace.owner_name,
            "name": workspace.name,
            "template": template.map(|template| &template.name),
            "transition": workspace.build.transition.as_str(),
            "build_number": workspace.build.number,
            "created_at": workspace.created_at,
            "agents": agents,
        }));
    }
    output.print(table, &Value::Array(all))
}

fn table<const N: usize>(heads: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(heads);
    table
}

fn split(name: &str) -> Result<(&str, &str), Error> {
    name.split_once('/')
        .filter(|(owner, short)| !owner.is_empty() && !short.is_empty() && !short.contains('/'))
        .ok_or_else(|| Error::WorkspaceName(name.to_owned()))
}

async fn find_user(store: &Store, name: &str) -> Result<User, Error> {
    let found = store.user_by_name(name).await?;
    found.ok_or_else(|| Error::Missing {
        what: "user",
        name: name.to_owned(),
        list: "user list",
    })
}

async fn find_workspace(store: &Store, name: &str) -> Result<Workspace, Error> {
    let (owner, short) = split(name)?;
    let owner = find_user(store, owner).await?;
    let found = store.workspace_by_name(owner.id, short).await?;
    found.ok_or_else(|| Error::Missing {
        what: "workspace",
        name: name.to_owned(),
        list: "workspace list",
    })
}

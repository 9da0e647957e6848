//! Workspaces and their agents.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::apps::insert_apps;
use super::builds::{build, insert_build};
use super::templates::{TEMPLATE_COLUMNS, template};
use super::{
    Agent, App, Build, CorsBehavior, Definition, Store, Template, Transition, check_name,
    is_unique_violation, now, time, uuid,
};
use crate::apps::access::ShareLevel;
use crate::error::{Error, Result};
use crate::secrets;

/// A workspace with its latest build and that build's agents.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub owner_id: Uuid,
    /// The owner's name.
    pub owner_name: String,
    /// Its name, unique for the owner.
    pub name: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When somebody last forwarded a port of it.
    pub last_used_at: DateTime<Utc>,
    /// What it was made from, if anything.
    pub template: Option<Template>,
    /// Whether its agents were named for it alone, and not by its template.
    pub own_agents: bool,
    /// The newest build.
    pub build: Build,
    /// The agents, by name.
    pub agents: Vec<Agent>,
}

impl Workspace {
    /// The highest level at which its ports are shared.
    pub fn max_share_level(&self) -> ShareLevel {
        let template = self.template.as_ref();
        template.map_or(ShareLevel::Public, |template| template.max_share_level)
    }

    /// Who answers cross-origin requests to its apps and ports.
    pub fn cors_behavior(&self) -> CorsBehavior {
        let template = self.template.as_ref();
        template.map_or_else(CorsBehavior::default, |template| template.cors_behavior)
    }
}

/// Whose and which workspaces to list.
#[derive(Clone, Debug, Default)]
pub struct WorkspaceFilter {
    /// Only this owner's.
    pub owner: Option<Uuid>,
    /// Only those whose name contains this.
    pub name: Option<String>,
}

/// A new workspace, with the tokens of its agents: the only time they are seen.
#[derive(Clone, Debug)]
pub struct CreatedWorkspace {
    /// The workspace's id.
    pub id: Uuid,
    /// Its agents.
    pub agents: Vec<CreatedAgent>,
}

/// An agent's token, for `relay agent --token`.
#[derive(Clone)]
pub struct CreatedAgent {
    /// The agent's name.
    pub name: String,
    /// Its id.
    pub id: Uuid,
    /// Its token.
    pub token: String,
}

impl std::fmt::Debug for CreatedAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, id, .. } = self;
        f.debug_struct("CreatedAgent")
            .field("name", name)
            .field("id", id)
            .finish_non_exhaustive()
    }
}

const WORKSPACE_COLUMNS: &str = "workspaces.id AS workspace_id, workspaces.owner_id, \
     users.username AS owner_name, workspaces.name AS workspace_name, \
     workspaces.created_at AS workspace_created_at, workspaces.last_used_at, \
     workspaces.own_agents, builds.id AS build_id, builds.build_number, builds.transition, \
     builds.created_at AS build_created_at";

const WORKSPACE_TABLES: &str = "workspaces JOIN users ON users.id = workspaces.owner_id \
     JOIN builds ON builds.workspace_id = workspaces.id AND builds.build_number = \
     (SELECT MAX(newest.build_number) FROM builds AS newest \
      WHERE newest.workspace_id = workspaces.id) \
     LEFT JOIN templates ON templates.id = workspaces.template_id";

fn workspace(row: &SqliteRow) -> Result<Workspace> {
    Ok(Workspace {
        id: uuid(row, "workspace_id")?,
        owner_id: uuid(row, "owner_id")?,
        owner_name: row.try_get("owner_name")?,
        name: row.try_get("workspace_name")?,
        created_at: time(row, "workspace_created_at")?,
        last_used_at: time(row, "last_used_at")?,
        template: match row.try_get::<Option<String>, _>("template_id")? {
            Some(_) => Some(template(row)?),
            None => None,
        },
        own_agents: row.try_get("own_agents")?,
        build: build(row)?,
        agents: Vec::new(),
    })
}

impl Store {
    /// Creates a started workspace with these agents.
    pub async fn create_workspace(
        &self,
        owner_id: Uuid,
        name: &str,
        agents: &[String],
    ) -> Result<CreatedWorkspace> {
        let plan = Plan::new(agents, Vec::new(), true)?;
        self.insert_workspace(owner_id, name, None, &plan).await
    }

    /// Creates a started workspace from a template: with its agents, or with these if there are any.
    pub async fn create_workspace_from(
        &self,
        owner_id: Uuid,
        name: &str,
        template: &Template,
        agents: &[String],
    ) -> Result<CreatedWorkspace> {
        let definition = self.definition(template.id).await?;
        let plan = Plan::of_template(&template.name, definition, agents)?;
        self.insert_workspace(owner_id, name, Some(template.id), &plan)
            .await
    }

    async fn insert_workspace(
        &self,
        owner_id: Uuid,
        name: &str,
        template_id: Option<Uuid>,
        plan: &Plan,
    ) -> Result<CreatedWorkspace> {
        check_name("workspace", name)?;
        let id = Uuid::new_v4();
        let created = now().timestamp_micros();
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "INSERT INTO workspaces \
             (id, owner_id, name, created_at, last_used_at, template_id, own_agents) \
             VALUES ($1, $2, $3, $4, $4, $5, $6)",
        )
        .bind(id.to_string())
        .bind(owner_id.to_string())
        .bind(name)
        .bind(created)
        .bind(template_id.map(|id| id.to_string()))
        .bind(plan.own_agents)
        .execute(&mut *transaction)
        .await;
        match done {
            Ok(_) => {}
            Err(error) if is_unique_violation(&error) => {
                return Err(Error::Exists {
                    what: "workspace",
                    name: name.into(),
                });
            }
            Err(error) => return Err(error.into()),
        }
        insert_build(&mut transaction, id, Transition::Start).await?;
        let agents = insert_agents(&mut transaction, id, plan).await?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(CreatedWorkspace { id, agents })
    }

    /// Builds a workspace anew: agents of the same names, or of those that its template has now,
    /// with new ids and tokens.
    pub async fn rebuild_workspace(&self, workspace: &Workspace) -> Result<CreatedWorkspace> {
        let id = workspace.id;
        let names: Vec<_> = workspace
            .agents
            .iter()
            .map(|agent| agent.name.clone())
            .collect();
        let plan = match &workspace.template {
            Some(template) => {
                let definition = self.definition(template.id).await?;
                let agents = if workspace.own_agents {
                    &names[..]
                } else {
                    &[]
                };
                Plan::of_template(&template.name, definition, agents)?
            }
            None => Plan::new(&names, Vec::new(), true)?,
        };
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM agents WHERE workspace_id = $1")
            .bind(id.to_string())
            .execute(&mut *transaction)
            .await?;
        insert_build(&mut transaction, id, Transition::Start).await?;
        let agents = insert_agents(&mut transaction, id, &plan).await?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(CreatedWorkspace { id, agents })
    }

    /// Deletes a workspace with its builds and agents.
    pub async fn delete_workspace(&self, id: Uuid) -> Result<()> {
        let mut transaction = self.begin().await?;
        for statement in [
            "DELETE FROM agents WHERE workspace_id = $1",
            "DELETE FROM builds WHERE workspace_id = $1",
            "DELETE FROM workspaces WHERE id = $1",
        ] {
            sqlx::query(statement)
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The workspaces a filter lets through, by owner and name.
    pub async fn workspaces(&self, filter: &WorkspaceFilter) -> Result<Vec<Workspace>> {
        let statement = format!(
            "SELECT {WORKSPACE_COLUMNS}, {TEMPLATE_COLUMNS} FROM {WORKSPACE_TABLES} \
             WHERE (CAST($1 AS TEXT) IS NULL OR workspaces.owner_id = $1) \
             ORDER BY users.username, workspaces.name"
        );
        let rows = sqlx::query(&statement)
            .bind(filter.owner.map(|owner| owner.to_string()))
            .fetch_all(&self.pool)
            .await?;
        let mut workspaces: Vec<_> = rows.iter().map(workspace).collect::<Result<_>>()?;
        if let Some(part) = &filter.name {
            workspaces.retain(|workspace| workspace.name.contains(part.as_str()));
        }
        for workspace in &mut workspaces {
            workspace.agents = self.agents_of(workspace.id).await?;
        }
        Ok(workspaces)
    }

    /// The workspace of that id.
    pub async fn workspace(&self, id: Uuid) -> Result<Option<Workspace>> {
        let statement = format!(
            "SELECT {WORKSPACE_COLUMNS}, {TEMPLATE_COLUMNS} FROM {WORKSPACE_TABLES} WHERE workspaces.id = $1"
        );
        let row = sqlx::query(&statement)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        self.with_agents(row).await
    }

    /// The workspace of that owner and name.
    pub async fn workspace_by_name(&self, owner: Uuid, name: &str) -> Result<Option<Workspace>> {
        let statement = format!(
            "SELECT {WORKSPACE_COLUMNS}, {TEMPLATE_COLUMNS} FROM {WORKSPACE_TABLES} \
             WHERE workspaces.owner_id = $1 AND workspaces.name = $2"
        );
        let row = sqlx::query(&statement)
            .bind(owner.to_string())
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        self.with_agents(row).await
    }

    /// The workspace of that owner and name, each by name or id, as a host name has them: in any
    /// case, the exact one first.
    pub(crate) async fn workspace_by_names(
        &self,
        owner: &str,
        name: &str,
    ) -> Result<Option<Workspace>> {
        let statement = format!(
            "SELECT {WORKSPACE_COLUMNS}, {TEMPLATE_COLUMNS} FROM {WORKSPACE_TABLES} \
             WHERE (LOWER(users.username) = LOWER($1) OR users.id = LOWER($1)) \
             AND (LOWER(workspaces.name) = LOWER($2) OR workspaces.id = LOWER($2)) \
             ORDER BY CASE WHEN users.username = $1 THEN 0 ELSE 1 END, \
             CASE WHEN workspaces.name = $2 THEN 0 ELSE 1 END LIMIT 1"
        );
        let row = sqlx::query(&statement)
            .bind(owner)
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        self.with_agents(row).await
    }

    async fn with_agents(&self, row: Option<SqliteRow>) -> Result<Option<Workspace>> {
        let Some(row) = row else { return Ok(None) };
        let mut found = workspace(&row)?;
        found.agents = self.agents_of(found.id).await?;
        Ok(Some(found))
    }

    /// Notes that a workspace is being used.
    pub(crate) async fn touch_workspace(&self, id: Uuid) -> Result<()> {
        sqlx::query("UPDATE workspaces SET last_used_at = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(now().timestamp_micros())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// The agent of a workspace for which none is named.
pub const DEFAULT_AGENT: &str = "main";

/// What a build makes.
struct Plan {
    agents: Vec<String>,
    apps: Vec<App>,
    own_agents: bool,
}

impl Plan {
    fn new(agents: &[String], apps: Vec<App>, own_agents: bool) -> Result<Self> {
        check_agent_names(agents)?;
        Ok(Self {
            agents: agents.to_vec(),
            apps,
            own_agents,
        })
    }

    /// The template's own agents, or `agents` if there are any. An only agent gets all apps of an
    /// only agent, whatever that one's name.
    fn of_template(template: &str, definition: Definition, agents: &[String]) -> Result<Self> {
        let Definition {
            agents: named,
            mut apps,
        } = definition;
        if agents.is_empty() {
            return match named.is_empty() {
                true => Self::new(&[DEFAULT_AGENT.to_owned()], apps, false),
                false => Self::new(&named, apps, false),
            };
        }
        if let ([only], [_]) = (agents, &named[..]) {
            for app in &mut apps {
                only.clone_into(&mut app.agent);
            }
        }
        match apps.iter().find(|app| !agents.contains(&app.agent)) {
            Some(app) => Err(Error::AppWithoutAgent {
                template: template.into(),
                app: app.slug.clone(),
                agent: app.agent.clone(),
            }),
            None => Self::new(agents, apps, true),
        }
    }
}

fn check_agent_names(names: &[String]) -> Result<()> {
    for (index, name) in names.iter().enumerate() {
        check_name("agent", name)?;
        if names[..index].contains(name) {
            return Err(Error::Exists {
                what: "agent",
                name: name.clone(),
            });
        }
    }
    Ok(())
}

async fn insert_agents(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    workspace_id: Uuid,
    plan: &Plan,
) -> Result<Vec<CreatedAgent>> {
    let created = now().timestamp_micros();
    let mut agents = Vec::with_capacity(plan.agents.len());
    for name in &plan.agents {
        let (id, token) = (Uuid::new_v4(), Uuid::new_v4().to_string());
        sqlx::query(
            "INSERT INTO agents (id, workspace_id, name, token_hash, created_at, updated_at, \
             lifecycle, version, directory) VALUES ($1, $2, $3, $4, $5, $5, $6, '', '')",
        )
        .bind(id.to_string())
        .bind(workspace_id.to_string())
        .bind(name)
        .bind(secrets::token_hash(&token))
        .bind(created)
        .bind("created")
        .execute(&mut **transaction)
        .await?;
        let apps = plan.apps.iter().filter(|app| app.agent == *name);
        insert_apps(transaction, id, apps).await?;
        agents.push(CreatedAgent {
            name: name.clone(),
            id,
            token,
        });
    }
    Ok(agents)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn with_alice() -> (Store, Uuid) {
        let store = Store::in_memory().await.unwrap();
        let alice = store
            .create_user("alice", "a@b.test", "password", false)
            .await
            .unwrap();
        (store, alice.id)
    }

    #[tokio::test]
    async fn a_workspace_is_found_by_id_and_name_with_its_agents() {
        let (store, alice) = with_alice().await;
        let names = ["main".to_owned(), "gpu".to_owned()];
        let created = store.create_workspace(alice, "dev", &names).await.unwrap();
        let found = store
            .workspace_by_name(alice, "dev")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(found.id, created.id);
        assert_eq!(
            (found.build.number, found.build.transition),
            (1, Transition::Start)
        );
        assert_eq!(found.agents.len(), 2);
        assert!(store.workspace(created.id).await.unwrap().is_some());
        assert!(store.workspace(Uuid::new_v4()).await.unwrap().is_none());
        let again = store.create_workspace(alice, "dev", &names).await;
        assert!(matches!(
            again,
            Err(Error::Exists {
                what: "workspace",
                ..
            })
        ));
    }

    #[tokio::test]
    async fn rebuilding_replaces_agents_and_tokens() {
        let (store, alice) = with_alice().await;
        let old = store
            .create_workspace(alice, "dev", &["main".to_owned()])
            .await
            .unwrap();
        let before = store.revision().await.unwrap();
        let workspace = store.workspace(old.id).await.unwrap().unwrap();
        let new = store.rebuild_workspace(&workspace).await.unwrap();
        assert_ne!(old.agents[0].id, new.agents[0].id);
        assert!(
            store
                .agent_by_token(&old.agents[0].token)
                .await
                .unwrap()
                .is_none()
        );
        let access = store
            .agent_by_token(&new.agents[0].token)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(access.agent.id, new.agents[0].id);
        assert_eq!(
            store.workspace(old.id).await.unwrap().unwrap().build.number,
            2
        );
        assert_ne!(before, store.revision().await.unwrap());
    }

    #[tokio::test]
    async fn deleting_takes_everything_along() {
        let (store, alice) = with_alice().await;
        let made = store
            .create_workspace(alice, "dev", &["main".to_owned()])
            .await
            .unwrap();
        store.create_build(made.id, Transition::Stop).await.unwrap();
        store.delete_workspace(made.id).await.unwrap();
        assert!(
            store
                .workspaces(&WorkspaceFilter::default())
                .await
                .unwrap()
                .is_empty()
        );
        assert!(
            store
                .agent_by_token(&made.agents[0].token)
                .await
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn two_agents_of_one_name_are_refused() {
        let (store, alice) = with_alice().await;
        let names = ["main".to_owned(), "main".to_owned()];
        let made = store.create_workspace(alice, "dev", &names).await;
        assert!(matches!(made, Err(Error::Exists { what: "agent", .. })));
    }
}

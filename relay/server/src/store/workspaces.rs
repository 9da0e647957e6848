//! Workspaces and their builds.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{Agent, Store, check_name, is_unique_violation, now, time, uuid};
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
    /// The newest build.
    pub build: Build,
    /// The agents, by name.
    pub agents: Vec<Agent>,
}

/// What a build did to its workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It runs from then on.
    Start,
    /// It is stopped.
    Stop,
}

impl Transition {
    /// The text in the database and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }

    /// Reads that text.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Start, Self::Stop]
            .into_iter()
            .find(|transition| transition.as_str() == text)
    }
}

/// One build of a workspace.
#[derive(Clone, Debug)]
pub struct Build {
    /// Its id.
    pub id: Uuid,
    /// The workspace.
    pub workspace_id: Uuid,
    /// 1 for the first.
    pub number: i64,
    /// What it did.
    pub transition: Transition,
    /// When it was made.
    pub created_at: DateTime<Utc>,
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
     builds.id AS build_id, builds.build_number, builds.transition, \
     builds.created_at AS build_created_at";

const WORKSPACE_TABLES: &str = "workspaces JOIN users ON users.id = workspaces.owner_id \
     JOIN builds ON builds.workspace_id = workspaces.id AND builds.build_number = \
     (SELECT MAX(newest.build_number) FROM builds AS newest \
      WHERE newest.workspace_id = workspaces.id)";

fn build(row: &SqliteRow) -> Result<Build> {
    let transition: String = row.try_get("transition")?;
    Ok(Build {
        id: uuid(row, "build_id")?,
        workspace_id: uuid(row, "workspace_id")?,
        number: row.try_get("build_number")?,
        transition: Transition::parse(&transition).ok_or(Error::Corrupt { what: "build" })?,
        created_at: time(row, "build_created_at")?,
    })
}

fn workspace(row: &SqliteRow) -> Result<Workspace> {
    Ok(Workspace {
        id: uuid(row, "workspace_id")?,
        owner_id: uuid(row, "owner_id")?,
        owner_name: row.try_get("owner_name")?,
        name: row.try_get("workspace_name")?,
        created_at: time(row, "workspace_created_at")?,
        last_used_at: time(row, "last_used_at")?,
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
        check_name("workspace", name)?;
        check_agent_names(agents)?;
        let id = Uuid::new_v4();
        let created = now().timestamp_micros();
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "INSERT INTO workspaces (id, owner_id, name, created_at, last_used_at) \
             VALUES ($1, $2, $3, $4, $4)",
        )
        .bind(id.to_string())
        .bind(owner_id.to_string())
        .bind(name)
        .bind(created)
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
        let agents = insert_agents(&mut transaction, id, agents).await?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(CreatedWorkspace { id, agents })
    }

    /// Builds a workspace anew: agents of the same names with new ids and tokens.
    pub async fn rebuild_workspace(&self, workspace: &Workspace) -> Result<CreatedWorkspace> {
        let id = workspace.id;
        let names: Vec<_> = workspace
            .agents
            .iter()
            .map(|agent| agent.name.clone())
            .collect();
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM agents WHERE workspace_id = $1")
            .bind(id.to_string())
            .execute(&mut *transaction)
            .await?;
        insert_build(&mut transaction, id, Transition::Start).await?;
        let agents = insert_agents(&mut transaction, id, &names).await?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(CreatedWorkspace { id, agents })
    }

    /// Starts or stops a workspace; its agents keep their tokens.
    pub(crate) async fn create_build(&self, id: Uuid, transition: Transition) -> Result<Build> {
        let mut transaction = self.begin().await?;
        let build = insert_build(&mut transaction, id, transition).await?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(build)
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
            "SELECT {WORKSPACE_COLUMNS} FROM {WORKSPACE_TABLES} \
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
        let statement =
            format!("SELECT {WORKSPACE_COLUMNS} FROM {WORKSPACE_TABLES} WHERE workspaces.id = $1");
        let row = sqlx::query(&statement)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        self.with_agents(row).await
    }

    /// The workspace of that owner and name.
    pub async fn workspace_by_name(&self, owner: Uuid, name: &str) -> Result<Option<Workspace>> {
        let statement = format!(
            "SELECT {WORKSPACE_COLUMNS} FROM {WORKSPACE_TABLES} \
             WHERE workspaces.owner_id = $1 AND workspaces.name = $2"
        );
        let row = sqlx::query(&statement)
            .bind(owner.to_string())
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

    /// The build of that id.
    pub(crate) async fn build(&self, id: Uuid) -> Result<Option<Build>> {
        let row = sqlx::query(
            "SELECT id AS build_id, workspace_id, build_number, transition, \
             created_at AS build_created_at FROM builds WHERE id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(build).transpose()
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

async fn insert_build(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    workspace_id: Uuid,
    transition: Transition,
) -> Result<Build> {
    let (id, created_at) = (Uuid::new_v4(), now());
    let row = sqlx::query(
        "INSERT INTO builds (id, workspace_id, build_number, transition, created_at) \
         SELECT $1, $2, COALESCE(MAX(build_number), 0) + 1, $3, $4 FROM builds \
         WHERE workspace_id = $2 RETURNING build_number",
    )
    .bind(id.to_string())
    .bind(workspace_id.to_string())
    .bind(transition.as_str())
    .bind(created_at.timestamp_micros())
    .fetch_one(&mut **transaction)
    .await?;
    Ok(Build {
        id,
        workspace_id,
        number: row.try_get(0)?,
        transition,
        created_at,
    })
}

async fn insert_agents(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    workspace_id: Uuid,
    names: &[String],
) -> Result<Vec<CreatedAgent>> {
    let created = now().timestamp_micros();
    let mut agents = Vec::with_capacity(names.len());
    for name in names {
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

//! The database: accounts, templates, workspaces, agents with their apps, shared ports, the use of
//! apps and a few settings. No HTTP, no sessions.

mod agents;
mod apps;
mod builds;
mod connections;
mod shares;
mod templates;
mod usage;
mod users;
mod workspaces;

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row, SqlitePool};
use uuid::Uuid;

pub use agents::{Agent, AgentAccess, Lifecycle};
pub use apps::{App, AppHealth, HealthCheck, OpenIn};
pub use builds::{Build, Transition};
pub use connections::{Connection, ConnectionFilter};
pub use templates::{CorsBehavior, Definition, Template};
pub use usage::{AppStat, AppUse};
pub use users::{Scope, Session, User};
pub use workspaces::{CreatedAgent, CreatedWorkspace, DEFAULT_AGENT, Workspace, WorkspaceFilter};

use crate::error::{Error, Result};

/// Name of the setting that changes whenever an administrator changed something.
const REVISION: &str = "revision";

/// How long one process waits for another one's changes.
const BUSY: Duration = Duration::from_secs(10);

/// Handle of the database; clones share one pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens (and makes, where needed) the database in a data directory.
    pub async fn open(data_dir: &Path) -> Result<Self> {
        prepare_dir(data_dir).map_err(|source| Error::DataDir {
            path: data_dir.into(),
            source,
        })?;
        let options = SqliteConnectOptions::new()
            .filename(data_dir.join("relay.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY)
            .foreign_keys(true);
        Self::with(options, 3).await
    }

    /// A database that lives as long as this handle.
    pub async fn in_memory() -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .in_memory(true)
            .foreign_keys(true);
        Self::with(options, 1).await
    }

    async fn with(options: SqliteConnectOptions, connections: u32) -> Result<Self> {
        let start = std::time::Instant::now();
        loop {
            // The server and a command may make the same database at the same time, and SQLite does
            // not wait in all of its steps.
            match Self::try_with(options.clone(), connections).await {
                Err(error) if is_busy(&error) && start.elapsed() < BUSY => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done => return done,
            }
        }
    }

    async fn try_with(options: SqliteConnectOptions, connections: u32) -> Result<Self> {
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(20))
            .connect_with(options)
            .await?;
        migrate(&pool, usize::MAX).await?;
        Ok(Self { pool })
    }

    /// Starts a transaction that writes. It takes its lock at once: one that first reads and then
    /// finds another writer could only fail.
    async fn begin(&self) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Closes the database; other handles fail from now on.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Reads a setting.
    pub(crate) async fn setting(&self, name: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Reads a setting, or stores and returns what `make` gives: the first writer wins.
    pub(crate) async fn setting_or(
        &self,
        name: &str,
        make: impl FnOnce() -> String,
    ) -> Result<String> {
        if let Some(value) = self.setting(name).await? {
            return Ok(value);
        }
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(make())
        .execute(&self.pool)
        .await?;
        self.setting(name)
            .await?
            .ok_or(Error::Corrupt { what: "setting" })
    }

    /// A text that differs after every change of users, templates, workspaces, their agents or
    /// shared ports by any process.
    pub(crate) async fn revision(&self) -> Result<String> {
        Ok(self.setting(REVISION).await?.unwrap_or_default())
    }

    async fn bump(transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>) -> Result<()> {
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(REVISION)
        .bind(Uuid::new_v4().to_string())
        .execute(&mut **transaction)
        .await?;
        Ok(())
    }
}

fn prepare_dir(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    // Made here so that nobody else can read it, whatever the umask.
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path.join("relay.db"))?;
    Ok(())
}

/// Brings the schema up to date, by no more than the first `most` migrations.
async fn migrate(pool: &SqlitePool, most: usize) -> Result<()> {
    let migration = |version, about, sql| {
        let (about, sql) = (Cow::Borrowed(about), Cow::Borrowed(sql));
        Migration::new(version, about, MigrationType::Simple, sql, false)
    };
    let mut all = vec![
        migration(
            1,
            "accounts and workspaces",
            include_str!("../../migrations/0001_accounts_and_workspaces.sql"),
        ),
        migration(
            2,
            "templates and shares",
            include_str!("../../migrations/0002_templates_and_shares.sql"),
        ),
        migration(3, "usage", include_str!("../../migrations/0003_usage.sql")),
    ];
    all.truncate(most);
    let migrator = Migrator {
        migrations: Cow::Owned(all),
        ..Migrator::DEFAULT
    };
    Ok(migrator.run(pool).await?)
}

pub(crate) fn now() -> DateTime<Utc> {
    from_micros(Utc::now().timestamp_micros())
}

fn from_micros(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

fn time(row: &SqliteRow, column: &str) -> Result<DateTime<Utc>> {
    Ok(from_micros(row.try_get(column)?))
}

fn maybe_time(row: &SqliteRow, column: &str) -> Result<Option<DateTime<Utc>>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(from_micros))
}

fn uuid(row: &SqliteRow, column: &str) -> Result<Uuid> {
    let text: String = row.try_get(column)?;
    Uuid::parse_str(&text).map_err(|_| Error::Corrupt { what: "id" })
}

fn is_busy(error: &Error) -> bool {
    let error = match error {
        Error::Database(error) => error,
        Error::Migrate(sqlx::migrate::MigrateError::Execute(error)) => error,
        Error::Migrate(sqlx::migrate::MigrateError::ExecuteMigration(error, _)) => error,
        _ => return false,
    };
    let code = error.as_database_error().and_then(|error| error.code());
    // The low byte is the kind: 5 is busy, 6 is locked. Two that make the same table at the same
    // time get a plain error (1), and find it made when they try again.
    let kind = code.and_then(|code| code.parse::<u32>().ok());
    kind.is_some_and(|kind| matches!(kind & 0xff, 1 | 5 | 6))
}

fn is_unique_violation(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.is_unique_violation())
}

/// Names of users, workspaces and agents: letters and digits, single hyphens between them.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<()> {
    let ok = (1..=32).contains(&name.len())
        && name
            .split('-')
            .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric()));
    // `me` means whoever asks, so nobody may be called so.
    if ok && !(what == "user" && name == "me") {
        Ok(())
    } else {
        Err(Error::Name {
            what,
            name: name.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_digits_and_single_hyphens() {
        for name in ["a", "dev", "my-box-2", "A1"] {
            assert!(check_name("workspace", name).is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a--b", "a.b", "a/b", "ä", &"x".repeat(33)] {
            assert!(check_name("workspace", name).is_err(), "{name}");
        }
        assert!(check_name("user", "me").is_err());
    }

    #[tokio::test]
    async fn settings_keep_the_first_value() {
        let store = Store::in_memory().await.unwrap();
        assert_eq!(store.setting_or("a", || "1".into()).await.unwrap(), "1");
        assert_eq!(store.setting_or("a", || "2".into()).await.unwrap(), "1");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_may_make_the_database_and_write_at_once() {
        let dir = std::env::temp_dir().join(format!("relay-store-{}", Uuid::new_v4()));
        let tasks: Vec<_> = (0..8)
            .map(|number| {
                let dir = dir.clone();
                tokio::spawn(async move {
                    let store = Store::open(&dir).await?;
                    store.setting_or("a", || number.to_string()).await?;
                    let (name, email) = (format!("u{number}"), format!("u{number}@b.test"));
                    store.create_user(&name, &email, "password", false).await
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_database_from_before_templates_keeps_sessions_and_workspaces() {
        let dir = std::env::temp_dir().join(format!("relay-store-{}", Uuid::new_v4()));
        prepare_dir(&dir).unwrap();
        let options = SqliteConnectOptions::new().filename(dir.join("relay.db"));
        let pool = SqlitePool::connect_with(options).await.unwrap();
        migrate(&pool, 1).await.unwrap();
        let (user, workspace, token) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        let hash = crate::secrets::token_hash;
        let secret = "s".repeat(22);
        for statement in [
            format!("INSERT INTO users VALUES ('{user}', 'alice', 'a@b.test', '', '', FALSE, 1)"),
            format!(
                "INSERT INTO api_keys VALUES ('kkkkkkkkkk', '{user}', '{}', 1, {})",
                hash(&secret),
                i64::MAX
            ),
            format!("INSERT INTO workspaces VALUES ('{workspace}', '{user}', 'dev', 1, 1)"),
            format!("INSERT INTO builds VALUES ('{workspace}', '{workspace}', 1, 'start', 1)"),
            format!(
                "INSERT INTO agents VALUES ('{token}', '{workspace}', 'main', '{}', 1, 1, NULL, \
                 NULL, NULL, NULL, NULL, 'ready', '', '')",
                hash(&token.to_string())
            ),
        ] {
            sqlx::query(&statement).execute(&pool).await.unwrap();
        }
        pool.close().await;
        let store = Store::open(&dir).await.unwrap();
        let session = store.session(&format!("kkkkkkkkkk-{secret}")).await;
        assert_eq!(session.unwrap().unwrap().scope, Scope::All);
        let found = store.workspace(workspace).await.unwrap().unwrap();
        assert!(found.template.is_none() && found.own_agents);
        let agent = store.agent_by_token(&token.to_string()).await.unwrap();
        assert!(agent.unwrap().agent.apps.is_empty());
        assert_eq!(
            store.rebuild_workspace(&found).await.unwrap().agents.len(),
            1
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_directory_can_be_opened_twice_and_keeps_its_content() {
        let dir = std::env::temp_dir().join(format!("relay-store-{}", Uuid::new_v4()));
        let first = Store::open(&dir).await.unwrap();
        let second = Store::open(&dir).await.unwrap();
        first
            .create_user("alice", "alice@example.com", "secret-password", true)
            .await
            .unwrap();
        assert_eq!(second.users().await.unwrap().len(), 1);
        assert_ne!(second.revision().await.unwrap(), "");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

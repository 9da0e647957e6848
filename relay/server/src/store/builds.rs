//! Builds: each start and stop of a workspace.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{Store, now, time, uuid};
use crate::error::{Error, Result};

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

/// The build of a row whose columns have its names.
pub(super) fn build(row: &SqliteRow) -> Result<Build> {
    let transition: String = row.try_get("transition")?;
    Ok(Build {
        id: uuid(row, "build_id")?,
        workspace_id: uuid(row, "workspace_id")?,
        number: row.try_get("build_number")?,
        transition: Transition::parse(&transition).ok_or(Error::Corrupt { what: "build" })?,
        created_at: time(row, "build_created_at")?,
    })
}

impl Store {
    /// Starts or stops a workspace; its agents keep their tokens.
    pub(crate) async fn create_build(&self, id: Uuid, transition: Transition) -> Result<Build> {
        let mut transaction = self.begin().await?;
        let build = insert_build(&mut transaction, id, transition).await?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(build)
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
}

/// Adds the next build of a workspace.
pub(super) async fn insert_build(
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

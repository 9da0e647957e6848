//! Accounts and their session tokens.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{Store, check_name, is_unique_violation, now, time, uuid};
use crate::error::{Error, Result};
use crate::secrets;

/// Life of a session token.
const KEY_LIFE: TimeDelta = TimeDelta::days(365);

/// An account.
#[derive(Clone, Debug)]
pub struct User {
    /// Its id.
    pub id: Uuid,
    /// The name in `OWNER/NAME`.
    pub username: String,
    /// E-mail address, used to log in.
    pub email: String,
    /// Full name; may be empty.
    pub name: String,
    /// Whether it may see the workspaces of others.
    pub is_admin: bool,
    /// When it was created.
    pub created_at: DateTime<Utc>,
}

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that its user may do.
    All,
    /// Opening apps and ports.
    ApplicationConnect,
}

impl Scope {
    fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::ApplicationConnect => "application_connect",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        [Self::All, Self::ApplicationConnect]
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or(Error::Corrupt { what: "key scope" })
    }
}

/// A key with its user.
#[derive(Clone, Debug)]
pub struct Session {
    /// The key's id, which is no secret.
    pub id: String,
    /// Id of the session that the key came from: its own, unless it only opens apps.
    pub origin: String,
    /// What it is good for.
    pub scope: Scope,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
    /// Whose it is.
    pub user: User,
}

pub(super) const USER_COLUMNS: &str = "users.id AS user_id, users.username, users.email, users.name AS full_name, \
     users.is_admin, users.created_at AS user_created_at";

pub(super) fn user(row: &SqliteRow) -> Result<User> {
    Ok(User {
        id: uuid(row, "user_id")?,
        username: row.try_get("username")?,
        email: row.try_get("email")?,
        name: row.try_get("full_name")?,
        is_admin: row.try_get("is_admin")?,
        created_at: time(row, "user_created_at")?,
    })
}

impl Store {
    /// Creates an account.
    pub async fn create_user(
        &self,
        username: &str,
        email: &str,
        password: &str,
        is_admin: bool,
    ) -> Result<User> {
        self.insert_user(username, email, "", password, is_admin, false)
            .await
    }

    /// Creates the very first account, an administrator's; `Exists` when there is one already.
    pub(crate) async fn create_first_user(
        &self,
        username: &str,
        email: &str,
        name: &str,
        password: &str,
    ) -> Result<User> {
        self.insert_user(username, email, name, password, true, true)
            .await
    }

    async fn insert_user(
        &self,
        username: &str,
        email: &str,
        name: &str,
        password: &str,
        is_admin: bool,
        only_first: bool,
    ) -> Result<User> {
        check_name("user", username)?;
        check_email(email)?;
        let length = password.chars().count();
        if !(6..=64).contains(&length) {
            return Err(Error::Password(length));
        }
        let hash = secrets::hash_password(password.into()).await?;
        let created = User {
            id: Uuid::new_v4(),
            username: username.into(),
            email: email.into(),
            name: name.into(),
            is_admin,
            created_at: now(),
        };
        let mut transaction = self.begin().await?;
        let condition = if only_first {
            "NOT EXISTS (SELECT 1 FROM users)"
        } else {
            "1 = 1"
        };
        let statement = format!(
            "INSERT INTO users (id, username, email, name, password_hash, is_admin, created_at) \
             SELECT $1, $2, $3, $4, $5, $6, $7 WHERE {condition}"
        );
        let done = sqlx::query(&statement)
            .bind(created.id.to_string())
            .bind(username)
            .bind(email)
            .bind(name)
            .bind(hash)
            .bind(is_admin)
            .bind(created.created_at.timestamp_micros())
            .execute(&mut *transaction)
            .await;
        match done {
            Ok(done) if done.rows_affected() == 1 => {}
            Ok(_) => {
                return Err(Error::Exists {
                    what: "first user",
                    name: username.into(),
                });
            }
            Err(error) if is_unique_violation(&error) => {
                let message = error.to_string();
                let (what, name) = if message.contains("email") {
                    ("e-mail address", email)
                } else {
                    ("user", username)
                };
                return Err(Error::Exists {
                    what,
                    name: name.into(),
                });
            }
            Err(error) => return Err(error.into()),
        }
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(created)
    }

    /// All accounts, by name.
    pub async fn users(&self) -> Result<Vec<User>> {
        let statement = format!("SELECT {USER_COLUMNS} FROM users ORDER BY username");
        let rows = sqlx::query(&statement).fetch_all(&self.pool).await?;
        rows.iter().map(user).collect()
    }

    /// Whether anybody has an account.
    pub async fn has_users(&self) -> Result<bool> {
        let row = sqlx::query("SELECT id FROM users LIMIT 1")
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.is_some())
    }

    /// The account of that name.
    pub async fn user_by_name(&self, username: &str) -> Result<Option<User>> {
        let statement = format!("SELECT {USER_COLUMNS} FROM users WHERE username = $1");
        let row = sqlx::query(&statement)
            .bind(username)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(user).transpose()
    }

    /// The account of that id.
    pub(crate) async fn user_by_id(&self, id: Uuid) -> Result<Option<User>> {
        let statement = format!("SELECT {USER_COLUMNS} FROM users WHERE id = $1");
        let row = sqlx::query(&statement)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(user).transpose()
    }

    /// The account of that e-mail address, when the password is right.
    pub(crate) async fn check_password(
        &self,
        email: &str,
        password: String,
    ) -> Result<Option<User>> {
        let statement =
            format!("SELECT {USER_COLUMNS}, users.password_hash FROM users WHERE email = $1");
        let row = sqlx::query(&statement)
            .bind(email)
            .fetch_optional(&self.pool)
            .await?;
        let found = match &row {
            Some(row) => Some((user(row)?, row.try_get("password_hash")?)),
            None => None,
        };
        let (user, hash) = found.unzip();
        Ok(if secrets::verify_password(password, hash).await? {
            user
        } else {
            None
        })
    }

    /// Makes a session token; only its hash is kept.
    pub async fn create_token(&self, user_id: Uuid) -> Result<String> {
        let expires_at = now() + KEY_LIFE;
        self.insert_key(user_id, Scope::All, None, expires_at).await
    }

    /// Makes a session token for a browser, which ends sooner.
    pub(crate) async fn create_session(&self, user_id: Uuid, life: TimeDelta) -> Result<String> {
        self.insert_key(user_id, Scope::All, None, now() + life)
            .await
    }

    /// Makes a key that only opens apps. It ends with the session that asks for it, and no later
    /// than `expires_at`.
    pub async fn create_app_key(
        &self,
        session: &Session,
        expires_at: DateTime<Utc>,
    ) -> Result<String> {
        let expires_at = expires_at.min(session.expires_at);
        let scope = Scope::ApplicationConnect;
        self.insert_key(session.user.id, scope, Some(&session.id), expires_at)
            .await
    }

    async fn insert_key(
        &self,
        user_id: Uuid,
        scope: Scope,
        session_id: Option<&str>,
        expires_at: DateTime<Utc>,
    ) -> Result<String> {
        let (id, secret) = (secrets::alphanumeric(10), secrets::alphanumeric(22));
        sqlx::query(
            "INSERT INTO api_keys \
             (id, user_id, secret_hash, created_at, expires_at, scope, session_id) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&id)
        .bind(user_id.to_string())
        .bind(secrets::token_hash(&secret))
        .bind(now().timestamp_micros())
        .bind(expires_at.timestamp_micros())
        .bind(scope.as_str())
        .bind(session_id)
        .execute(&self.pool)
        .await?;
        Ok(format!("{id}-{secret}"))
    }

    /// The account a session token belongs to; a key that only opens apps belongs to nobody here.
    pub(crate) async fn user_by_token(&self, token: &str) -> Result<Option<User>> {
        let session = self.session(token).await?;
        Ok(session
            .filter(|session| session.scope == Scope::All)
            .map(|session| session.user))
    }

    /// What a session token or a key that only opens apps stands for.
    pub async fn session(&self, token: &str) -> Result<Option<Session>> {
        let Some((id, secret)) = token.split_once('-') else {
            return Ok(None);
        };
        if id.len() != 10 || secret.len() != 22 {
            return Ok(None);
        }
        let found = self.key(id).await?;
        Ok(found
            .filter(|(_, hash)| secrets::equal(hash, &secrets::token_hash(secret)))
            .map(|(session, _)| session))
    }

    /// The session of a key's id, for whoever knew the secret before.
    pub(crate) async fn session_by_id(&self, id: &str) -> Result<Option<Session>> {
        Ok(self.key(id).await?.map(|(session, _)| session))
    }

    /// A key that has not expired, with the hash of its secret.
    async fn key(&self, id: &str) -> Result<Option<(Session, String)>> {
        let statement = format!(
            "SELECT {USER_COLUMNS}, api_keys.secret_hash, api_keys.expires_at, api_keys.scope, \
             api_keys.session_id FROM api_keys JOIN users ON users.id = api_keys.user_id \
             WHERE api_keys.id = $1 AND api_keys.expires_at > $2"
        );
        let row = sqlx::query(&statement)
            .bind(id)
            .bind(now().timestamp_micros())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let origin: Option<String> = row.try_get("session_id")?;
        let session = Session {
            id: id.to_owned(),
            origin: origin.unwrap_or_else(|| id.to_owned()),
            scope: Scope::parse(row.try_get("scope")?)?,
            expires_at: time(&row, "expires_at")?,
            user: user(&row)?,
        };
        Ok(Some((session, row.try_get("secret_hash")?)))
    }

    /// Makes a session token worthless, and the app keys that came from it.
    pub(crate) async fn delete_token(&self, token: &str) -> Result<()> {
        let id = token.split('-').next().unwrap_or_default();
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM api_keys WHERE id = $1")
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        // What was granted to it elsewhere must end, too.
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(())
    }
}

fn check_email(email: &str) -> Result<()> {
    let ok = email.len() <= 254
        && email.chars().all(|c| !c.is_whitespace() && !c.is_control())
        && email.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && !host.is_empty() && !host.contains('@')
        });
    if ok {
        Ok(())
    } else {
        Err(Error::Email(email.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tokens_are_only_good_with_their_secret_and_until_deleted() {
        let store = Store::in_memory().await.unwrap();
        let alice = store
            .create_user("alice", "a@b.test", "password", false)
            .await
            .unwrap();
        let token = store.create_token(alice.id).await.unwrap();
        assert_eq!(token.len(), 33);
        assert_eq!(
            store.user_by_token(&token).await.unwrap().unwrap().id,
            alice.id
        );
        let forged = format!("{}-{}", &token[..10], "x".repeat(22));
        for bad in [forged.as_str(), "", "-", &token[..10], &token[11..]] {
            assert!(store.user_by_token(bad).await.unwrap().is_none(), "{bad}");
        }
        store.delete_token(&token).await.unwrap();
        assert!(store.user_by_token(&token).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_app_key_opens_only_apps_and_ends_with_its_session() {
        let store = Store::in_memory().await.unwrap();
        let alice = store
            .create_user("alice", "a@b.test", "password", false)
            .await
            .unwrap();
        let token = store.create_token(alice.id).await.unwrap();
        let session = store.session(&token).await.unwrap().unwrap();
        assert_eq!((session.scope, &session.origin), (Scope::All, &session.id));
        let later = session.expires_at + TimeDelta::days(1);
        let key = store.create_app_key(&session, later).await.unwrap();
        let app = store.session(&key).await.unwrap().unwrap();
        assert_eq!(app.scope, Scope::ApplicationConnect);
        assert_eq!((&app.origin, app.user.id), (&session.id, alice.id));
        assert_eq!(app.expires_at, session.expires_at);
        assert!(store.user_by_token(&key).await.unwrap().is_none());
        let over = store.create_app_key(&session, now()).await.unwrap();
        assert!(store.session(&over).await.unwrap().is_none());
        store.delete_token(&token).await.unwrap();
        assert!(store.session(&key).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn names_and_addresses_are_unique_and_checked() {
        let store = Store::in_memory().await.unwrap();
        store
            .create_user("alice", "a@b.test", "password", false)
            .await
            .unwrap();
        let again = store
            .create_user("alice", "x@b.test", "password", false)
            .await;
        assert!(matches!(again, Err(Error::Exists { what: "user", .. })));
        let again = store
            .create_user("bob", "a@b.test", "password", false)
            .await;
        assert!(matches!(
            again,
            Err(Error::Exists {
                what: "e-mail address",
                ..
            })
        ));
        assert!(matches!(
            store.create_user("bob", "nowhere", "password", false).await,
            Err(Error::Email(_))
        ));
        assert!(matches!(
            store.create_user("bob", "b@b.test", "short", false).await,
            Err(Error::Password(5))
        ));
    }

    #[tokio::test]
    async fn the_first_user_can_be_made_once() {
        let store = Store::in_memory().await.unwrap();
        assert!(!store.has_users().await.unwrap());
        store
            .create_first_user("alice", "a@b.test", "Alice", "password")
            .await
            .unwrap();
        let second = store
            .create_first_user("bob", "b@b.test", "Bob", "password")
            .await;
        assert!(matches!(second, Err(Error::Exists { .. })));
        assert!(
            store
                .check_password("a@b.test", "password".into())
                .await
                .unwrap()
                .is_some()
        );
        assert!(
            store
                .check_password("a@b.test", "Password".into())
                .await
                .unwrap()
                .is_none()
        );
        assert!(
            store
                .check_password("c@b.test", "password".into())
                .await
                .unwrap()
                .is_none()
        );
    }
}

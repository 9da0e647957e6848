-- Accounts, workspaces and their agents. Times are microseconds since 1970, ids are UUID texts,
-- and only types that SQLite and Postgres share are used.
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    username TEXT NOT NULL UNIQUE,
    email TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    is_admin BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    secret_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX api_keys_by_user ON api_keys (user_id);

CREATE TABLE workspaces (
    id TEXT PRIMARY KEY,
    owner_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL,
    UNIQUE (owner_id, name)
);

CREATE TABLE builds (
    id TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    build_number BIGINT NOT NULL,
    transition TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (workspace_id, build_number)
);

CREATE TABLE agents (
    id TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    token_hash TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    first_connected_at BIGINT,
    last_connected_at BIGINT,
    disconnected_at BIGINT,
    started_at BIGINT,
    ready_at BIGINT,
    lifecycle TEXT NOT NULL,
    version TEXT NOT NULL,
    directory TEXT NOT NULL,
    UNIQUE (workspace_id, name)
);

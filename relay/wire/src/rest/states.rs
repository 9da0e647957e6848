//! Names of states; reading one that is not known gives `Other`.

use serde::{Deserialize, Deserializer, Serialize};

macro_rules! states {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A state that this version does not know.
            #[default]
            Other,
        }

        impl $name {
            /// The state's name in the API.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other => "unknown",
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$variant,)*
                    _ => Self::Other,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Option::<String>::deserialize(deserializer)?;
                Ok(Self::from(text.as_deref().unwrap_or_default()))
            }
        }
    };
}

states! {
    /// What a build does to its workspace.
    Transition {
        /// Starts it.
        Start = "start",
        /// Stops it.
        Stop = "stop",
        /// Deletes it.
        Delete = "delete",
    }
}

states! {
    /// Where a workspace is, told from its latest build.
    BuildStatus {
        /// Waiting for its turn.
        Pending = "pending",
        /// Being started.
        Starting = "starting",
        /// Started.
        Running = "running",
        /// Being stopped.
        Stopping = "stopping",
        /// Stopped.
        Stopped = "stopped",
        /// The build failed.
        Failed = "failed",
        /// The build is being cancelled.
        Canceling = "canceling",
        /// The build was cancelled.
        Canceled = "canceled",
        /// Being deleted.
        Deleting = "deleting",
        /// Deleted.
        Deleted = "deleted",
    }
}

states! {
    /// Where a job is.
    JobStatus {
        /// Waiting for its turn.
        Pending = "pending",
        /// At work.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Being cancelled.
        Canceling = "canceling",
        /// Cancelled.
        Canceled = "canceled",
        /// Failed.
        Failed = "failed",
    }
}

states! {
    /// Whether an agent is connected to its control plane.
    AgentStatus {
        /// Never seen yet.
        Connecting = "connecting",
        /// Connected.
        Connected = "connected",
        /// Was connected.
        Disconnected = "disconnected",
        /// Did not come within its time.
        Timeout = "timeout",
    }
}

states! {
    /// Where an agent is in its life.
    LifecycleState {
        /// Not started.
        Created = "created",
        /// Start-up scripts are running.
        Starting = "starting",
        /// They take too long.
        StartTimeout = "start_timeout",
        /// They failed.
        StartError = "start_error",
        /// All is up.
        Ready = "ready",
        /// Being shut down.
        ShuttingDown = "shutting_down",
        /// Shutting down takes too long.
        ShutdownTimeout = "shutdown_timeout",
        /// Shutting down failed.
        ShutdownError = "shutdown_error",
        /// Shut down.
        Off = "off",
    }
}

impl LifecycleState {
    /// Whether the agent is going away or gone.
    pub fn is_ending(self) -> bool {
        matches!(
            self,
            Self::ShuttingDown | Self::ShutdownTimeout | Self::ShutdownError | Self::Off
        )
    }
}

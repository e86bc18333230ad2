//! What goes wrong, and the exit code that says so.

use std::io::ErrorKind;
use std::process::ExitCode;

use anabranch_client::Error as ClientError;
use anabranch_protocol::error::{Code, Problem};
use anabranch_storage::data_dir::DataDirError;

use crate::config::ConfigError;
use crate::node::StartError;
use crate::serve::ServeError;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    error: anyhow::Error,
}

/// The classes of failure that scripts can tell apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Error,
    Usage,
    NotFound,
    Conflict,
    Denied,
    Unavailable,
    /// The reader of our output has gone: nothing to report.
    NobodyReads,
}

impl Kind {
    /// The class that an exit code says.
    fn of_exit_code(code: i32) -> Self {
        let kinds = [
            Self::Usage,
            Self::NotFound,
            Self::Conflict,
            Self::Denied,
            Self::Unavailable,
        ];
        let kind = kinds
            .into_iter()
            .find(|kind| i32::from(kind.exit_code()) == code);
        kind.unwrap_or(Self::Error)
    }

    const fn exit_code(self) -> u8 {
        match self {
            Self::Error => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Denied => 5,
            Self::Unavailable => 6,
            Self::NobodyReads => 0,
        }
    }

    fn of_code(code: Code) -> Self {
        match code {
            // What was typed is no name, no definition, no place: trying again does not help.
            Code::BadStreamName | Code::BadDefinition | Code::BadParameter => return Self::Usage,
            Code::BadFrom | Code::BadCursor => return Self::Usage,
            _ => {}
        }
        match code.http_status() {
            404 => Self::NotFound,
            409 | 412 => Self::Conflict,
            401 | 403 => Self::Denied,
            503 | 504 | 507 => Self::Unavailable,
            _ => Self::Error,
        }
    }

    fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if let Some(error) = cause.downcast_ref::<ClientError>() {
                return Self::of_client(error);
            }
            if let Some(problem) = cause.downcast_ref::<Problem>() {
                return Self::of_code(problem.code);
            }
            if cause.downcast_ref::<ConfigError>().is_some() {
                return Self::Usage;
            }
            if let Some(ServeError::Listen { .. }) = cause.downcast_ref() {
                return Self::Conflict;
            }
            if let Some(StartError::DataDir(error)) = cause.downcast_ref() {
                return Self::of_data_dir(error);
            }
            if let Some(error) = cause.downcast_ref() {
                return Self::of_data_dir(error);
            }
            if let Some(error) = cause.downcast_ref::<std::io::Error>() {
                return Self::of_io(error.kind());
            }
        }
        Self::Error
    }

    fn of_data_dir(error: &DataDirError) -> Self {
        match error {
            DataDirError::InUse { .. } | DataDirError::OtherCluster { .. } => Self::Conflict,
            DataDirError::Io { source, .. } => Self::of_io(source.kind()),
            _ => Self::Error,
        }
    }

    fn of_client(error: &ClientError) -> Self {
        match error {
            ClientError::Refused(problem) => Self::of_code(problem.code),
            ClientError::Address(_) => Self::Usage,
            error if error.retryable() => Self::Unavailable,
            _ => Self::Error,
        }
    }

    fn of_io(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::BrokenPipe => Self::NobodyReads,
            ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::TimedOut => Self::Unavailable,
            ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::Error,
        }
    }
}

impl Failure {
    /// The user asked for something that does not exist in this form.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Usage,
            error: anyhow::anyhow!(message.into()),
        }
    }

    /// Another process of this program has failed, with this exit code if it had one.
    pub(super) fn of_process(code: Option<i32>, message: impl Into<String>) -> Self {
        Self {
            kind: code.map_or(Kind::Error, Kind::of_exit_code),
            error: anyhow::anyhow!(message.into()),
        }
    }

    /// A row or stream that is not there.
    pub(super) fn not_found(code: Code, message: &str) -> Self {
        Self {
            kind: Kind::NotFound,
            error: Problem::new(code, message).into(),
        }
    }

    /// The error and its causes; a cause that the error has told already is left out.
    pub(super) fn message(&self) -> String {
        let mut message = String::new();
        for cause in self.error.chain().map(ToString::to_string) {
            if message.is_empty() {
                message = cause;
            } else if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        if let Some(ClientError::Connect { .. }) = self.error.downcast_ref() {
            message.push_str("; start a broker (anabranch dev), or name another with --server");
        }
        message
    }

    /// Prints the reason, and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        if self.kind != Kind::NobodyReads {
            super::output::error(&self.message());
        }
        ExitCode::from(self.kind.exit_code())
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        Self {
            kind: Kind::of(&error),
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use anabranch_core::id::ClusterId;
    use anabranch_storage::data_dir::DataDir;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = anyhow::anyhow!("inner");
        let told = Failure::from(inner.context("outer: inner")).message();
        assert_eq!(told, "outer: inner");
        let inner = anyhow::anyhow!("inner");
        let told = Failure::from(inner.context("outer")).message();
        assert_eq!(told, "outer: inner");
    }

    #[test]
    fn a_folder_that_another_process_has_is_a_conflict() {
        let folder = tempfile::tempdir().unwrap();
        let open = || DataDir::open(folder.path(), ClusterId::of("test"), 1);
        let _held = open().unwrap();
        let failure = Failure::from(ServeError::from(StartError::from(open().unwrap_err())));
        assert_eq!(failure.kind.exit_code(), 4);
        let failure = Failure::from(anyhow::Error::new(open().unwrap_err()).context("AB7001"));
        assert_eq!(failure.kind.exit_code(), 4);
    }

    #[test]
    fn exit_codes_follow_the_class_of_the_error() {
        let code = |code: Code| Failure::from(Problem::new(code, "")).kind.exit_code();
        assert_eq!(code(Code::NoSuchStream), 3);
        assert_eq!(code(Code::StreamExists), 4);
        assert_eq!(code(Code::Starting), 6);
        assert_eq!(code(Code::BadStreamName), 2);
        assert_eq!(code(Code::FixedField), 4);
        assert_eq!(code(Code::BatchCrc), 1);
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        assert_eq!(Failure::from(refused).kind, Kind::Unavailable);
        let gone = std::io::Error::from(ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(gone).kind, Kind::NobodyReads);
        assert_eq!(Failure::usage("x").kind.exit_code(), 2);
        for code in 1..=6 {
            let passed_on = Failure::of_process(Some(code), "x").kind.exit_code();
            assert_eq!(i32::from(passed_on), code);
        }
        assert_eq!(Failure::of_process(None, "x").kind.exit_code(), 1);
    }
}

//! The database URL, with `sslmode` meaning what it means to libpq and psql.
//!
//! tokio-postgres reads the modes `disable`, `prefer` and `require`, and leaves the certificate to the TLS connector.
//! It refuses a URL with `sslmode=verify-full` or `sslrootcert`, the two that managed databases tell their users to
//! add. This module takes both out of the URL and turns them into a certificate check:
//!
//! | `sslmode` | encrypted | certificate's chain | host name |
//! |---|---|---|---|
//! | `disable` | no | | |
//! | `prefer` (default) | if the server can | not checked | not checked |
//! | `require` | yes | checked if there is an `sslrootcert` | not checked |
//! | `verify-ca` | yes | checked | not checked |
//! | `verify-full` | yes | checked | checked |
//!
//! As in libpq, none of it applies to Unix sockets, and `sslrootcert=system` implies `verify-full`. Two differences
//! remain. Without `sslrootcert` the roots are Mozilla's, compiled in, and not a file in the home directory. And a
//! certificate that is checked must be of X.509 version 3; where the host name is checked, it must be among the
//! certificate's alternative names.

mod verifier;

use std::path::PathBuf;

use rustls::pki_types::pem;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use verifier::{Checks, Roots, connector};

/// Why a database URL is refused. No variant carries the password.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// tokio-postgres does not accept the rest of the URL; its error names the parameter.
    #[error("the database URL is not valid")]
    Invalid(#[source] tokio_postgres::Error),
    /// The URL has two `@`. If it were cut at the wrong one, a part of the password would become the host.
    #[error("the database URL has more than one `@`: write `%40` for one in a password or a parameter")]
    SecondAt,
    /// Not a URL, and not the keyword form either.
    #[error(
        "the database URL is neither `postgres://…` nor `parameter=value` pairs (a value with spaces needs single \
         quotes)"
    )]
    Pairs,
    /// An unknown `sslmode`.
    #[error("sslmode `{0}` is not one of disable, prefer, require, verify-ca, verify-full")]
    Mode(String),
    /// `sslrootcert=system` needs `verify-full`, and the `sslmode` that is given is weaker.
    #[error("sslrootcert=system needs sslmode=verify-full")]
    WeakForSystem,
    /// The file of `sslrootcert` cannot be read.
    #[error("cannot read sslrootcert `{path}`")]
    RootCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The file of `sslrootcert` can be read but holds no certificate that can be used.
    #[error("sslrootcert `{path}` holds no usable certificate in PEM form")]
    NoRootCertificate {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a libpq URL (`postgres://…`) or keyword string (`host=… user=…`). Returns where to connect, and how to check
/// the server's certificate.
///
/// # Errors
///
/// If a parameter is unknown or has a wrong value, or the file of `sslrootcert` holds no usable certificate.
pub fn parse(url: &str) -> Result<(Config, MakeRustlsConnect), UrlError> {
    let (rest, parameters) = take_ssl_parameters(url)?;
    let mut config: Config = rest.parse().map_err(UrlError::Invalid)?;
    if is_local(&config) {
        config.ssl_mode(SslMode::Disable);
        return Ok((config, none()));
    }
    let (ssl_mode, checks) = parameters.resolve()?;
    config.ssl_mode(ssl_mode);
    Ok((config, connector(checks)))
}

/// Returns a connector for connections that never use TLS, such as those over a Unix socket. It trusts no certificate,
/// so that TLS by mistake fails.
#[must_use]
pub fn none() -> MakeRustlsConnect {
    connector(Checks::ChainAndName(Roots::none()))
}

/// Whether all hosts are Unix sockets, on which TLS does not exist, whatever `sslmode` says.
fn is_local(config: &Config) -> bool {
    let hosts = config.get_hosts();
    let is_socket = |host: &Host| matches!(host, Host::Unix(_));
    !hosts.is_empty() && hosts.iter().all(is_socket) && config.get_hostaddrs().is_empty()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// The parameters that tokio-postgres must not see.
#[derive(Debug, Default, PartialEq, Eq)]
struct SslParameters {
    mode: Option<Mode>,
    root_certificate: Option<String>,
}

impl SslParameters {
    /// Stores a parameter if it is one of these two, and returns whether it is. As in libpq, the last one of a name
    /// counts.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, UrlError> {
        match name {
            "sslmode" => self.mode = Some(parse_mode(value)?),
            "sslrootcert" => self.root_certificate = Some(value.to_owned()).filter(|path| !path.is_empty()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Returns the mode for tokio-postgres, and the checks of the certificate.
    fn resolve(&self) -> Result<(SslMode, Checks), UrlError> {
        let root_certificate = self.root_certificate.as_deref();
        let system = root_certificate == Some("system");
        let mode = match self.mode {
            None if system => Mode::VerifyFull,
            Some(mode) if system && mode != Mode::VerifyFull => return Err(UrlError::WeakForSystem),
            mode => mode.unwrap_or(Mode::Prefer),
        };
        Ok(match mode {
            Mode::Disable => (SslMode::Disable, Checks::Nothing),
            Mode::Prefer => (SslMode::Prefer, Checks::Nothing),
            Mode::Require if root_certificate.is_none() => (SslMode::Require, Checks::Nothing),
            Mode::Require | Mode::VerifyCa => (SslMode::Require, Checks::Chain(Roots::load(root_certificate)?)),
            Mode::VerifyFull => (SslMode::Require, Checks::ChainAndName(Roots::load(root_certificate)?)),
        })
    }
}

fn parse_mode(value: &str) -> Result<Mode, UrlError> {
    Ok(match value {
        "disable" => Mode::Disable,
        "prefer" => Mode::Prefer,
        "require" => Mode::Require,
        "verify-ca" => Mode::VerifyCa,
        "verify-full" => Mode::VerifyFull,
        _ => return Err(UrlError::Mode(value.to_owned())),
    })
}

/// Splits the connection string into what tokio-postgres understands and what is handled here.
fn take_ssl_parameters(url: &str) -> Result<(String, SslParameters), UrlError> {
    match url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")) {
        Some(address) => take_from_url(url, address),
        None => take_from_pairs(url),
    }
}

/// `address` is `url` without its scheme.
fn take_from_url(url: &str, address: &str) -> Result<(String, SslParameters), UrlError> {
    if address.matches('@').count() > 1 {
        return Err(UrlError::SecondAt);
    }
    let mut parameters = SslParameters::default();
    // A `?` before the `@` belongs to the password.
    let after_password = url.find('@').unwrap_or(0);
    let Some(question_mark) = url[after_password..].find('?').map(|at| after_password + at) else {
        return Ok((url.to_owned(), parameters));
    };

    let mut kept = Vec::new();
    for pair in url[question_mark + 1..].split('&') {
        // In an HTML form `+` means a space; in a Postgres URL, as in most file names, it is a plus.
        let escaped = pair.replace('+', "%2B");
        let taken = match form_urlencoded::parse(escaped.as_bytes()).next() {
            Some((name, value)) => parameters.take(&name, &value)?,
            None => false,
        };
        if !taken {
            kept.push(pair);
        }
    }
    let base = &url[..question_mark];
    let rest = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
    Ok((rest, parameters))
}

fn take_from_pairs(pairs: &str) -> Result<(String, SslParameters), UrlError> {
    let (mut kept, mut parameters) = (String::new(), SslParameters::default());
    let mut rest = pairs.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(UrlError::Pairs)?;
        let (name, after) = (name.trim_end(), after.trim_start());
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(UrlError::Pairs);
        }
        let (value, end) = read_value(after).ok_or(UrlError::Pairs)?;
        let raw_value = &after[..end];
        if !parameters.take(name, &value)? {
            kept.extend([name, "=", raw_value, " "]);
        }
        rest = after[end..].trim_start();
    }
    Ok((kept, parameters))
}

/// Returns the value at the start of `text`, quoted or bare, and where it ends. A backslash escapes in both.
fn read_value(text: &str) -> Option<(String, usize)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            '\'' if quoted => return Some((value, at + 1)),
            c if c.is_whitespace() && !quoted => return Some((value, at)),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    fn split(url: &str) -> (String, SslParameters) {
        take_ssl_parameters(url).unwrap()
    }

    fn checks(url: &str) -> (SslMode, Checks) {
        split(url).1.resolve().unwrap()
    }

    /// The whole chain of an error, as `Display` and as `Debug` print it.
    fn explain(url: &str) -> String {
        let error = parse(url).map(|(config, _)| config).unwrap_err();
        let mut text = format!("{error} {error:?}");
        let mut source = error.source();
        while let Some(cause) = source {
            text += &format!(": {cause} {cause:?}");
            source = cause.source();
        }
        text
    }

    #[test]
    fn a_url_loses_only_the_two_parameters() {
        let url =
            "postgres://u:p%40w@h:6432/db?application_name=a%26b&sslmode=verify-ca&sslrootcert=%2Fa+b&options=x";
        let (rest, parameters) = split(url);
        assert_eq!(rest, "postgres://u:p%40w@h:6432/db?application_name=a%26b&options=x");
        assert_eq!(parameters.mode, Some(Mode::VerifyCa));
        assert_eq!(parameters.root_certificate.as_deref(), Some("/a+b"));

        assert_eq!(split("postgresql://u@h/db?sslmode=disable").0, "postgresql://u@h/db");
        assert_eq!(split("postgres://u:a?b@h/db").0, "postgres://u:a?b@h/db");
    }

    #[test]
    fn pairs_lose_only_the_two_parameters() {
        let (rest, parameters) =
            split(r"host = h password='it\'s = sslmode=x' sslmode=require sslrootcert='/a b' dbname=d\ b");
        assert_eq!(rest, r"host=h password='it\'s = sslmode=x' dbname=d\ b ");
        assert_eq!(parameters.mode, Some(Mode::Require));
        assert_eq!(parameters.root_certificate.as_deref(), Some("/a b"));

        let config: Config = rest.parse().unwrap();
        assert_eq!(config.get_password(), Some(b"it's = sslmode=x".as_slice()));
        assert_eq!(config.get_dbname(), Some("d b"));
    }

    #[test]
    fn modes_check_what_libpq_checks() {
        assert!(matches!(checks("postgres://h"), (SslMode::Prefer, Checks::Nothing)));
        assert!(matches!(checks("postgres://h?sslmode=disable"), (SslMode::Disable, Checks::Nothing)));
        assert!(matches!(checks("postgres://h?sslmode=prefer"), (SslMode::Prefer, Checks::Nothing)));
        assert!(matches!(checks("postgres://h?sslmode=require"), (SslMode::Require, Checks::Nothing)));
        assert!(matches!(checks("postgres://h?sslmode=verify-ca"), (SslMode::Require, Checks::Chain(_))));
        assert!(matches!(checks("postgres://h?sslmode=verify-full"), (SslMode::Require, Checks::ChainAndName(_))));
        assert!(matches!(checks("postgres://h?sslrootcert=system"), (SslMode::Require, Checks::ChainAndName(_))));
    }

    #[test]
    fn a_unix_socket_needs_no_tls() {
        for url in ["host=/run/pg user=u sslmode=require", "postgres://u@%2Frun%2Fpg/db?sslmode=verify-full"] {
            assert_eq!(parse(url).unwrap().0.get_ssl_mode(), SslMode::Disable);
        }
    }

    #[test]
    fn require_with_a_root_certificate_reads_it() {
        assert!(explain("postgres://h?sslmode=require&sslrootcert=/nowhere").contains("sslrootcert `/nowhere`"));
        assert!(parse("postgres://h?sslmode=prefer&sslrootcert=/nowhere").is_ok());
    }

    #[test]
    fn errors_name_the_parameter_and_never_the_password() {
        let cases = [
            ("postgres://u:hunter2@h/db?sslmode=allow", "sslmode `allow`"),
            ("postgres://u:hunter2@h/db?sslmode=require&sslrootcert=system", "sslmode=verify-full"),
            ("postgres://u:hunter2@h/db?sslmode=verify-ca&sslrootcert=/dev/null", "no usable certificate"),
            ("postgres://u:hunter2@h/db?sslcert=x", "`sslcert`"),
            ("postgres://u:hunter2@h:port/db", "`port`"),
            ("postgres://u:p@hunter2@h/db", "more than one `@`"),
            ("user=u password=hunter2 sslcert=x", "`sslcert`"),
            ("user=u password=my hunter2 dbname=x", "single quotes"),
            ("user=u password='hunter2", "single quotes"),
            ("hunter2", "single quotes"),
        ];
        for (url, expected) in cases {
            let text = explain(url);
            assert!(text.contains(expected), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}

//! Sends receipts to a mail server.
//!
//! The commands are sent one by one, because it matters which of them fails: a recipient that is refused for ever ends
//! the job, while a server that refuses *us* is a problem that an operator can fix. Each receipt has its own
//! connection: with one receipt for each ride, a new connection costs less than the failures of a stale one.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use lettre::address::Envelope;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, MailParameter};
use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// TLS from the first byte (RFC 8314).
const SMTPS_PORT: u16 = 465;
/// Submission by clients that log in (RFC 6409).
const SUBMISSION_PORT: u16 = 587;
/// How much of a server's error is kept. It is usually a sentence, but need not be.
const REPLY_CHARACTERS: usize = 300;
/// How long a server may take to answer QUIT.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a URL names no mail server. Never quotes the URL, because there is a password in it.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum UrlError {
    #[error("is not of the form smtps://user:password@host or smtp://user:password@host")]
    Form,
    #[error("has a query other than ?tls=required or ?tls=none")]
    Query,
    #[error("has a user without a password, or one that is not UTF-8")]
    Credentials,
    #[error("has a host that no certificate could be for")]
    Host,
}

/// Why a mail server did not take a mail, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum SmtpError {
    /// It was not reached, or did not accept us. The mail was not sent.
    #[error("no conversation: {0}")]
    NotSent(Said),
    /// It refused the sender, the recipient or the mail.
    #[error("turned down at {step}: {said}")]
    Refused {
        /// Which command it was.
        step: Step,
        /// The server's words.
        said: Said,
    },
    /// The connection broke after the mail had been sent, and before the server had answered whether it took it.
    #[error("it is not known whether it was taken: {0}")]
    Unknown(Said),
}

/// A command that the server can refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `MAIL FROM`: the sender.
    Sender,
    /// `RCPT TO`: the recipient.
    Recipient,
    /// `DATA`: that a mail follows.
    Data,
    /// The mail itself.
    Mail,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sender => "MAIL FROM",
            Self::Recipient => "RCPT TO",
            Self::Data => "DATA",
            Self::Mail => "the end of DATA",
        })
    }
}

/// The server's or the system's error text, without the addresses that servers often repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    code: Option<u16>,
    text: String,
}

impl Said {
    fn new(error: &Error) -> Self {
        let text: String = error
            .to_string()
            .split_whitespace()
            .map(|word| if word.contains('@') { "(address)" } else { word })
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(REPLY_CHARACTERS)
            .collect();
        Self { code: error.status().map(u16::from), text }
    }

    /// Returns whether the server refuses us rather than the mail: it wants us to log in (530 to 539), or its policy is
    /// against us (enhanced status 5.7.y).
    fn is_about_us(&self) -> bool {
        self.code.is_some_and(|code| (530..540).contains(&code)) || self.text.contains(" 5.7.")
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl SmtpError {
    /// Returns whether this recipient or this mail will never be taken.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::Unknown(_) | Self::Refused { step: Step::Sender | Step::Data, .. } => false,
            Self::Refused { step: Step::Recipient | Step::Mail, said } => {
                said.code.is_some_and(|code| code >= 500) && !said.is_about_us()
            }
        }
    }
}

/// A mail server, and how to log in to it.
#[derive(Clone)]
pub struct Smtp {
    host: String,
    port: u16,
    security: Security,
    credentials: Option<Credentials>,
}

#[derive(Clone)]
enum Security {
    None,
    StartTls(TlsParameters),
    Tls(TlsParameters),
}

impl fmt::Debug for Smtp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smtp").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// A mail that was taken; the connection is still open.
pub(super) struct Taken(AsyncSmtpConnection);

impl Taken {
    /// Sends QUIT in the background, so that the caller does not wait for the answer.
    pub(super) fn farewell(mut self) {
        tokio::spawn(async move {
            // The mail was taken, so the result of QUIT does not matter.
            let _ = tokio::time::timeout(FAREWELL, self.0.quit()).await;
        });
    }
}

impl Smtp {
    /// Parses a URL of the form of `receipts.smtp_url`. Makes no connection.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let url = Url::parse(url).map_err(|_| UrlError::Form)?;
        let (Some(host), "" | "/", None) = (url.host_str(), url.path(), url.fragment()) else {
            return Err(UrlError::Form);
        };
        // `url` parses IPv4 addresses in web URLs only, so `is_this_machine` parses the host again, in any spelling.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = || TlsParameters::new(host.clone()).map_err(|_| UrlError::Host);
        let (security, port) = match (url.scheme(), url.query()) {
            ("smtps", None | Some("tls=required")) => (Security::Tls(tls()?), SMTPS_PORT),
            ("smtp", Some("tls=none")) => (Security::None, SUBMISSION_PORT),
            ("smtp", None) if is_this_machine(&host) => (Security::None, SUBMISSION_PORT),
            ("smtp", None | Some("tls=required")) => (Security::StartTls(tls()?), SUBMISSION_PORT),
            ("smtp" | "smtps", Some(_)) => return Err(UrlError::Query),
            _ => return Err(UrlError::Form),
        };
        let credentials = match (decode(url.username())?, url.password()) {
            (user, None) if user.is_empty() => None,
            (user, Some(password)) if !user.is_empty() => Some(Credentials::new(user, decode(password)?)),
            _ => return Err(UrlError::Credentials),
        };
        Ok(Self { port: url.port().unwrap_or(port), host, security, credentials })
    }

    /// Hands a mail over. The caller bounds the time.
    pub(super) async fn send(&self, envelope: &Envelope, mail: &[u8]) -> Result<Taken, SmtpError> {
        let not_sent = |error: Error| SmtpError::NotSent(Said::new(&error));
        let mut connection = self.connect(envelope).await.map_err(not_sent)?;
        let refused = |step| move |error: Error| refusal(step, &error);

        let international =
            envelope.to().iter().chain(envelope.from()).any(|address| !AsRef::<str>::as_ref(address).is_ascii());
        let options = if international { vec![MailParameter::SmtpUtfEight] } else { Vec::new() };
        let sender = Mail::new(envelope.from().cloned(), options);
        connection.command(sender).await.map_err(refused(Step::Sender))?;
        for recipient in envelope.to() {
            let recipient = Rcpt::new(recipient.clone(), Vec::new());
            connection.command(recipient).await.map_err(refused(Step::Recipient))?;
        }
        connection.command(Data).await.map_err(refused(Step::Data))?;
        let taken = connection.message(mail).await;
        taken.map_err(|error| match error.status() {
            Some(_) => refused(Step::Mail)(error),
            None => SmtpError::Unknown(Said::new(&error)),
        })?;
        Ok(Taken(connection))
    }

    async fn connect(&self, envelope: &Envelope) -> Result<AsyncSmtpConnection, Error> {
        // Servers want a name in the greeting; the sender's domain is one that we may use.
        let sender =
            envelope.from().map_or_else(ClientId::default, |from| ClientId::Domain(from.domain().to_owned()));
        let tls = match &self.security {
            Security::Tls(tls) => Some(tls.clone()),
            Security::None | Security::StartTls(_) => None,
        };
        let address = (self.host.as_str(), self.port);
        let mut connection = AsyncSmtpConnection::connect_tokio1(address, None, &sender, tls, None).await?;
        if let Security::StartTls(tls) = &self.security {
            // Fails if the server does not offer STARTTLS, so neither password nor mail is sent unencrypted.
            connection.starttls(tls.clone(), &sender).await?;
        }
        if let Some(credentials) = &self.credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }
}

/// Returns the error for a failure at this step. If the server gave no code, the mail was not sent.
fn refusal(step: Step, error: &Error) -> SmtpError {
    let said = Said::new(error);
    if said.code.is_some() { SmtpError::Refused { step, said } } else { SmtpError::NotSent(said) }
}

fn is_this_machine(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Ipv4(address)) => address.is_loopback(),
        Ok(Host::Domain(name)) => name == "localhost",
        Ok(Host::Ipv6(_)) | Err(_) => host.parse::<std::net::Ipv6Addr>().is_ok_and(|address| address.is_loopback()),
    }
}

/// Decodes the percent-encoding of a part of a URL.
fn decode(part: &str) -> Result<String, UrlError> {
    percent_decode_str(part).decode_utf8().map(Cow::into_owned).map_err(|_| UrlError::Credentials)
}

//! Receipts to a mail server.
//!
//! The conversation is held step by step, because it matters at which step it fails: a recipient that is refused for
//! ever is the job's end, while a server that refuses *us* is for an operator to mend. A connection serves one receipt:
//! at a receipt a ride, what a second connection costs is not worth what a stale one does.

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
/// Submission by those who log in (RFC 6409).
const SUBMISSION_PORT: u16 = 587;
/// Servers' errors are sentences, but need not be.
const REPLY_CHARACTERS: usize = 300;
/// How long a server may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a URL names no mail server. Says nothing of what it holds: there is a password in it.
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
    /// It was not reached, or did not let us in. The mail did not leave.
    #[error("no conversation: {0}")]
    NotSent(Said),
    /// It turned the sender, the recipient or the mail down.
    #[error("turned down at {step}: {said}")]
    Refused {
        /// Which command it was.
        step: Step,
        /// The server's words.
        said: Said,
    },
    /// The connection broke when the mail had been sent, and before the server had said whether it took it.
    #[error("it is not known whether it was taken: {0}")]
    Unknown(Said),
}

/// A command that names something that can be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `MAIL FROM`: who sends.
    Sender,
    /// `RCPT TO`: who receives.
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

/// What went wrong in the server's or the system's words, without the addresses that servers like to repeat.
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

    /// Whether the server objects to us rather than to the mail: it wants us to log in (530 to 538), or its policy is
    /// against us (enhanced status x.7.y).
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
    /// Whether this recipient or this mail will never be taken.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::Unknown(_) | Self::Refused { step: Step::Sender | Step::Data, .. } => false,
            Self::Refused { step: Step::Recipient | Step::Mail, said } => {
                said.code.is_some_and(|code| code >= 500) && !said.is_about_us()
            }
        }
    }
}

/// A mail server, and how to be let in.
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
    /// Ends the conversation as politeness asks, without making anybody wait.
    pub(super) fn farewell(mut self) {
        tokio::spawn(async move {
            // The mail was taken, so how this ends is of no interest.
            let _ = tokio::time::timeout(FAREWELL, self.0.quit()).await;
        });
    }
}

impl Smtp {
    /// Reads a URL as `receipts.smtp_url` has it. Connects nowhere.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let url = Url::parse(url).map_err(|_| UrlError::Form)?;
        let (Some(host), "" | "/", None) = (url.host_str(), url.path(), url.fragment()) else {
            return Err(UrlError::Form);
        };
        // `url` knows hosts of web addresses only; here an address of this machine is one in any spelling.
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
        // Servers want a name in the greeting; the sender's domain is one that we have a right to.
        let sender =
            envelope.from().map_or_else(ClientId::default, |from| ClientId::Domain(from.domain().to_owned()));
        let tls = match &self.security {
            Security::Tls(tls) => Some(tls.clone()),
            Security::None | Security::StartTls(_) => None,
        };
        let address = (self.host.as_str(), self.port);
        let mut connection = AsyncSmtpConnection::connect_tokio1(address, None, &sender, tls, None).await?;
        if let Security::StartTls(tls) = &self.security {
            // Fails if the server does not offer it: nothing is said in the clear to whoever may be in between.
            connection.starttls(tls.clone(), &sender).await?;
        }
        if let Some(credentials) = &self.credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }
}

/// A refusal at this step; if the server said nothing, the mail did not leave.
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

/// A part of a URL without its percent signs.
fn decode(part: &str) -> Result<String, UrlError> {
    percent_decode_str(part).decode_utf8().map(Cow::into_owned).map_err(|_| UrlError::Credentials)
}

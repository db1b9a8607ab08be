//! Renders a receipt as a mail in plain text and in HTML.

use std::time::SystemTime;

use humantime_serde::re::humantime;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::{Address, Message};
use uuid::Uuid;

use super::Mail;

/// What a receipt is for: money that was charged to the card, or refunded to it.
#[derive(Debug)]
pub(super) struct Receipt<'a> {
    pub(super) ride_id: i64,
    /// Set if the money was refunded.
    pub(super) refund: Option<Refund<'a>>,
    pub(super) staged_id: i64,
    /// When the money moved.
    pub(super) at: SystemTime,
    /// In hundredths of the currency.
    pub(super) amount: u32,
    pub(super) currency: &'a str,
    /// Latitude and longitude, in degrees.
    pub(super) origin: (f64, f64),
    pub(super) target: (f64, f64),
    pub(super) charge_id: &'a str,
}

/// A refund.
#[derive(Debug)]
pub(super) struct Refund<'a> {
    pub(super) id: i64,
    pub(super) stripe_id: &'a str,
}

/// Makes the mail. The same job gives the same mail to the last byte: nothing in it is random, and its date is that of
/// the payment.
pub(super) fn mail(receipt: &Receipt<'_>, from: Mailbox, to: Address, installation: Uuid) -> Mail {
    let id = Uuid::new_v5(&installation, format!("receipt of staged job {}", receipt.staged_id).as_bytes());
    let message_id = format!("<{id}@{}>", from.email.domain());
    let lines = receipt.lines();
    let bodies = MultiPart::alternative()
        .boundary(format!("receipt-{}", id.simple()))
        .singlepart(SinglePart::plain(text(receipt.thanks(), &lines)))
        .singlepart(SinglePart::html(html(receipt.thanks(), &lines)));
    let message = Message::builder()
        .from(from)
        .to(Mailbox::new(None, to))
        .subject(receipt.subject())
        .date(receipt.at)
        .message_id(Some(message_id.clone()))
        // Answering machines leave such mail unanswered (RFC 3834).
        .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
        .multipart(bodies)
        .expect("sender, recipient and body are there");
    let (database, ..) = installation.as_fields();
    Mail {
        message_id,
        file_name: format!("{}-{}-{database:08x}.eml", receipt.file_stem(), receipt.staged_id),
        envelope: message.envelope().clone(),
        bytes: message.formatted(),
    }
}

impl Receipt<'_> {
    /// Returns the lines about the ride: a name and a value each.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let place = |(latitude, longitude): (f64, f64)| format!("{latitude}, {longitude}");
        // As in 2025-11-24T03:06:00Z; a time before 1970 is written as 1970.
        let paid_at = humantime::format_rfc3339_seconds(self.at.max(SystemTime::UNIX_EPOCH)).to_string();
        let paid = if self.refund.is_some() { "Refund" } else { "Paid" };
        let mut lines = vec![
            ("Ride", self.ride_id.to_string()),
            ("Date", paid_at.replace('T', " ").replace('Z', " UTC")),
            ("From", place(self.origin)),
            ("To", place(self.target)),
            // Rides are priced in a currency that has cents.
            (paid, format!("{}.{:02} {}", self.amount / 100, self.amount % 100, self.currency.to_uppercase())),
            ("Charge", self.charge_id.to_owned()),
        ];
        lines.extend(self.refund.as_ref().map(|refund| ("Stripe", refund.stripe_id.to_owned())));
        lines
    }

    fn subject(&self) -> String {
        match self.refund {
            None => format!("Your receipt for rocket ride {}", self.ride_id),
            Some(_) => format!("Your refund for rocket ride {}", self.ride_id),
        }
    }

    fn thanks(&self) -> &'static str {
        match self.refund {
            None => "Thank you for riding with Rocket Rides. Your card was charged once.",
            Some(_) => "Your rocket ride is refunded. The money goes back to your card, once.",
        }
    }

    fn file_stem(&self) -> String {
        match &self.refund {
            None => format!("receipt-{}", self.ride_id),
            Some(refund) => format!("refund-{}", refund.id),
        }
    }
}

fn text(thanks: &str, lines: &[(&str, String)]) -> String {
    let lines: String = lines.iter().map(|(name, value)| format!("{name:<8}{value}\n")).collect();
    format!("{thanks}\n\n{lines}")
}

fn html(thanks: &str, lines: &[(&str, String)]) -> String {
    let rows: String = lines
        .iter()
        .map(|(name, value)| {
            let (name, value) = (escaped(name), escaped(value));
            format!("<tr><th align=\"left\">{name}</th><td>{value}</td></tr>\n")
        })
        .collect();
    let thanks = escaped(thanks);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Receipt</title></head>\n\
         <body>\n<p>{thanks}</p>\n<table>\n{rows}</table>\n</body>\n</html>\n"
    )
}

/// Escapes text for an element or a quoted attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mailparse::{MailHeaderMap, ParsedMail};

    use super::*;

    fn render(charge_id: &str, installation: Uuid) -> Mail {
        let receipt = Receipt {
            ride_id: 7,
            refund: None,
            staged_id: 9,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_953_560),
            amount: 2005,
            currency: "usd",
            origin: (37.7749, -122.4194),
            target: (-90.0, 180.0),
            charge_id,
        };
        let from = "Rocket Rides <receipts@rides.test>".parse().unwrap();
        mail(&receipt, from, "user@example.com".parse().unwrap(), installation)
    }

    fn part(mail: &ParsedMail<'_>, kind: &str) -> String {
        let part = mail.subparts.iter().find(|part| part.ctype.mimetype == kind).unwrap();
        part.get_body().unwrap().replace("\r\n", "\n")
    }

    #[test]
    fn both_parts_say_all_of_it() {
        let mail = render("ch_1", Uuid::nil());
        let parsed = mailparse::parse_mail(&mail.bytes).unwrap();
        assert_eq!(parsed.ctype.mimetype, "multipart/alternative");
        assert_eq!(
            part(&parsed, "text/plain"),
            "Thank you for riding with Rocket Rides. Your card was charged once.\n\n\
             Ride    7\nDate    2025-11-24 03:06:00 UTC\nFrom    37.7749, -122.4194\nTo      -90, 180\n\
             Paid    20.05 USD\nCharge  ch_1\n"
        );
        let html = part(&parsed, "text/html");
        for said in ["<td>7</td>", "<td>2025-11-24 03:06:00 UTC</td>", "<td>20.05 USD</td>", "<td>ch_1</td>"] {
            assert!(html.contains(said), "{html}");
        }
        let header = |name| parsed.headers.get_first_value(name).unwrap();
        assert_eq!(header("To"), "user@example.com");
        assert_eq!(header("Message-ID"), mail.message_id);
        assert_eq!(header("Date"), "Mon, 24 Nov 2025 03:06:00 +0000");
        assert_eq!(header("Auto-Submitted"), "auto-generated");
    }

    #[test]
    fn html_is_escaped_and_text_is_not() {
        let charge = "ch_<b>&\"'";
        let mail = render(charge, Uuid::nil());
        let parsed = mailparse::parse_mail(&mail.bytes).unwrap();
        assert!(part(&parsed, "text/html").contains("<td>ch_&lt;b&gt;&amp;&quot;&#39;</td>"));
        assert!(part(&parsed, "text/plain").contains(charge));
    }

    #[test]
    fn the_same_job_makes_the_same_mail_and_another_database_another() {
        let (one, again) = (render("ch_1", Uuid::nil()), render("ch_1", Uuid::nil()));
        assert_eq!(
            (one.bytes, &one.message_id, &one.file_name),
            (again.bytes, &again.message_id, &again.file_name)
        );
        assert_eq!(one.file_name, "receipt-7-9-00000000.eml");
        let other = render("ch_1", Uuid::from_u128(0x1234_5678 << 96));
        assert_eq!(other.file_name, "receipt-7-9-12345678.eml");
        assert_ne!(one.message_id, other.message_id);
    }
}

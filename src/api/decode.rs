//! Decodes requests: headers that may be given once, and a body in one of three forms.

use std::fmt;
use std::time::Duration;

use futures_util::stream;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName};
use hyper::http::request::Parts;
use hyper::{HeaderMap, body::Body as _};
use serde::de::{Deserializer, MapAccess, Visitor};

use super::error::ApiError;
use crate::endpoint::ParamError;
use crate::http::{self, BodyError};

/// The longest body, in bytes. A usual one has a few hundred.
const BODY_BYTES: usize = 16 * 1024;

/// The field by which a client of a demonstration asks for a failure.
const RAISE_ERROR: &str = "raise_error";

/// A body's fields, in the order in which they came.
#[derive(Debug)]
pub(super) struct Fields(Vec<(String, String)>);

/// Returns the value of a header that may be given once, as text. With two values, chance would decide which one
/// counts.
pub(super) fn single_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(ApiError::HeaderTwice(name.clone()));
    }
    first.map(|value| value.to_str().map_err(|_| ApiError::HeaderNotText(name.clone()))).transpose()
}

/// Reads the whole body and parses it as its `Content-Type` says: form, JSON or multipart.
pub(super) async fn read(head: &Parts, body: Incoming, timeout: Duration) -> Result<Fields, ApiError> {
    if body.size_hint().lower() > BODY_BYTES as u64 {
        return Err(ApiError::Body(BodyError::TooLong { limit: BODY_BYTES }));
    }
    let kind = single_header(&head.headers, &CONTENT_TYPE)?.unwrap_or("application/x-www-form-urlencoded");
    let body = http::read_body(body, BODY_BYTES, timeout).await.map_err(ApiError::Body)?;
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/x-www-form-urlencoded" => Ok(form(&body)),
        "application/json" => json(&body),
        "multipart/form-data" => multipart(kind, body).await,
        _ => Err(ApiError::ContentType(kind.to_owned())),
    }
}

fn form(body: &[u8]) -> Fields {
    Fields(form_urlencoded::parse(body).into_owned().collect())
}

async fn multipart(kind: &str, body: Bytes) -> Result<Fields, ApiError> {
    let boundary = multer::parse_boundary(kind).map_err(|error| ApiError::Unparsable(error.to_string()))?;
    let mut parts = multer::Multipart::new(stream::iter([Ok::<_, std::convert::Infallible>(body)]), boundary);
    let mut fields = Vec::new();
    loop {
        let unparsable = |error: multer::Error| ApiError::Unparsable(error.to_string());
        let Some(part) = parts.next_field().await.map_err(unparsable)? else { return Ok(Fields(fields)) };
        let name = part.name().unwrap_or_default().to_owned();
        fields.push((name, part.text().await.map_err(unparsable)?));
    }
}

fn json(body: &[u8]) -> Result<Fields, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let fields = json.deserialize_map(FieldsVisitor).map_err(|error| ApiError::Unparsable(error.to_string()))?;
    json.end().map_err(|error| ApiError::Unparsable(error.to_string()))?;
    Ok(fields)
}

/// Keeps every member of a JSON object. A map would silently keep the last of two members with one name.
struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the ride's coordinates")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, serde_json::Value>()? {
            let text = match value {
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            };
            fields.push((name, text));
        }
        Ok(Fields(fields))
    }
}

impl Fields {
    /// Checks that none of these fields, nor `raise_error`, was given twice. Other fields have no meaning.
    pub(super) fn each_once(&self, names: &'static [&'static str]) -> Result<(), ParamError> {
        for field in names.iter().copied().chain([RAISE_ERROR]) {
            if self.0.iter().filter(|(name, _)| name == field).count() > 1 {
                return Err(ParamError { field, problem: "is given twice".to_owned() });
            }
        }
        Ok(())
    }

    /// Returns the text of a field.
    pub(super) fn find(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }

    /// Returns whether the client asks for a failure.
    pub(super) fn raise_error(&self) -> Result<bool, ParamError> {
        match self.find(RAISE_ERROR).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ParamError { field: RAISE_ERROR, problem: "must be true or false".to_owned() }),
        }
    }
}

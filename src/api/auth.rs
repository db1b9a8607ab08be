//! Who is asking.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::decode::single_header;
use super::error::{ApiError, Unauthenticated};
use crate::database::Database;
use crate::users::{self, User};

/// A user who was found is not looked up again for so long, which saves a busy client a read with each request. Somebody who
/// is removed is told so a second later; no ride is booked meanwhile, because it refers to its user's row.
const REMEMBERED: Duration = Duration::from_secs(1);
/// How many are remembered at most.
const MOST: usize = 10_000;

/// The users who asked a moment ago, by e-mail address.
#[derive(Debug, Default)]
pub struct Seen(Mutex<HashMap<String, (User, Instant)>>);

/// The user whose e-mail address stands in `Authorization`.
pub(super) async fn authenticate(database: &Database, seen: &Seen, headers: &HeaderMap) -> Result<User, ApiError> {
    let email = single_header(headers, &AUTHORIZATION)?;
    let email = match email.map(str::trim) {
        None | Some("") => return Err(ApiError::Unauthenticated(Unauthenticated::Missing)),
        Some(email) => email,
    };
    if let Some(user) = seen.recall(email) {
        return Ok(user);
    }
    let user = users::find_by_email(database, email).await?;
    let user = user.ok_or(ApiError::Unauthenticated(Unauthenticated::Unknown))?;
    seen.remember(email, &user);
    Ok(user)
}

impl Seen {
    fn recall(&self, email: &str) -> Option<User> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(email).filter(|(_, at)| at.elapsed() < REMEMBERED).map(|(user, _)| user.clone())
    }

    fn remember(&self, email: &str, user: &User) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST {
            seen.retain(|_, (_, at)| at.elapsed() < REMEMBERED);
        }
        if seen.len() < MOST {
            seen.insert(email.to_owned(), (user.clone(), Instant::now()));
        }
    }
}

//! Authenticates clients by e-mail address.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use atomic_phases::database::Database;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use tokio::time::Instant;

use super::decode::single_header;
use super::error::{ApiError, Unauthenticated};
use crate::users::{self, User};

/// How long a user who was found is not looked up again, which saves a busy client a read with each request. A user who
/// is removed is refused up to a second later; no ride is booked meanwhile, because it refers to its user's row.
const REMEMBERED: Duration = Duration::from_secs(1);
/// How many users are remembered at most.
const MOST: usize = 10_000;

/// A cache of the users who sent a request a moment ago, by e-mail address.
#[derive(Debug, Default)]
pub struct Seen(Mutex<HashMap<String, (User, Instant)>>);

/// Returns the user whose e-mail address is in `Authorization`.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: i64) -> User {
        User { id, stripe_customer_id: format!("cus_{id}") }
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_is_remembered_for_a_second() {
        let seen = Seen::default();
        seen.remember("a", &user(1));
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!((seen.recall("a"), seen.recall("b")), (Some(user(1)), None));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(seen.recall("a"), None);
        seen.remember("a", &user(2));
        assert_eq!(seen.recall("a"), Some(user(2)), "what was found last");
    }

    #[tokio::test(start_paused = true)]
    async fn users_are_remembered_up_to_a_bound_and_make_room_when_they_are_forgotten() {
        let seen = Seen::default();
        let remembered = |id: usize| seen.recall(&id.to_string()).is_some();
        let remember = |id: usize| seen.remember(&id.to_string(), &user(1));
        (0..=MOST).for_each(remember);
        assert_eq!((0..=MOST).filter(|id| remembered(*id)).count(), MOST);
        tokio::time::advance(REMEMBERED).await;
        (MOST..2 * MOST).for_each(remember);
        assert_eq!((0..2 * MOST).filter(|id| remembered(*id)).count(), MOST);
        assert_eq!(seen.0.lock().expect("no panic").len(), MOST);
    }
}

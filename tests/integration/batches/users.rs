//! Look-ups of users.

use atomic_phases::database::{Database, DatabaseError};
use rocket_rides_atomic::users::{self, User};
use uuid::Uuid;

use super::{Case, Stage, WaitsFor, refusal};

fn words(found: Result<Option<User>, DatabaseError>) -> String {
    match found {
        Ok(Some(user)) => format!("user {} of {}", user.id, user.stripe_customer_id),
        Ok(None) => "no such user".to_owned(),
        Err(error) => refusal(&error),
    }
}

/// Inserts a user. Returns the address, and the text that describes a look-up of it.
async fn insert(stage: &Stage) -> (String, String) {
    let (email, customer) = (format!("{}@example.com", Uuid::new_v4()), format!("cus_{}", Uuid::new_v4()));
    let sql = "INSERT INTO users (email, stripe_customer_id) VALUES ($1, $2) RETURNING id";
    let id: i64 = stage.app.query(sql, &[&email, &customer]).await[0].get(0);
    (email, format!("user {id} of {customer}"))
}

pub(super) struct ByEmail {
    email: String,
    expected: String,
}

impl Case for ByEmail {
    const COVERS: &'static str = "users.rs: ByEmail";
    const WAITS_FOR: WaitsFor = WaitsFor::Table("users");

    async fn caller(stage: &Stage, n: usize) -> Self {
        let (email, found) = insert(stage).await;
        let unknown = "no such user".to_owned();
        match n % 4 {
            0 | 2 => Self { email, expected: found },
            1 => Self { email: format!("{}@example.com", Uuid::new_v4()), expected: unknown },
            _ => Self { email: email.to_uppercase(), expected: unknown },
        }
    }

    async fn refused(_: &Stage) -> Option<Self> {
        Some(Self { email: "user\0@example.com".to_owned(), expected: "refused".to_owned() })
    }

    async fn call(&self, database: &Database) -> String {
        words(users::find_by_email(database, &self.email).await)
    }

    fn expected(&self) -> String {
        self.expected.clone()
    }
}

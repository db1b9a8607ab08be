//! The test of the tool itself.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Ended, Mutant, THREADS, Trial, replacement};
use crate::suite::{Failure, Test};

/// How often a test that was red beside others is run by itself to see whether it can be relied on.
const AGAIN: usize = 3;

impl<'a> Trial<'a> {
    /// Tests the tool itself: with statements that were only read and printed again, all tests must be green. A test
    /// that is red in this run, and only sometimes green by itself, proves nothing about a mutant and is left out from
    /// now on.
    pub async fn identity(&mut self, mutants: &[Mutant]) -> Result<(), Failure> {
        let concerned: BTreeSet<usize> = mutants.iter().flat_map(Mutant::statements).collect();
        let print = |at: &usize| replacement(&self.statements[*at], &self.statements[*at].script);
        let replaced: HashMap<String, String> = concerned.iter().map(print).collect();
        let tests: BTreeSet<&Test> = concerned.iter().flat_map(|at| &self.statements[*at].tests).collect();
        self.log(&format!("{} statements, only read and printed again, in {} tests", replaced.len(), tests.len()));
        let parts = (0..self.jobs).map(|job| tests.iter().skip(job).step_by(self.jobs).copied().collect());
        let reds: Vec<_> = stream::iter(parts)
            .map(|part| self.reds(&replaced, part))
            .buffer_unordered(self.jobs)
            .try_collect()
            .await?;
        for test in reds.concat() {
            let green = self.greens(&replaced, test).await?;
            if green == 0 {
                return Err(format!("{test} is red when statements are only read and printed again").into());
            }
            self.log(&format!("{test} was red, and green {green} times of {AGAIN} by itself"));
            if green < AGAIN {
                self.left_out.insert(test);
            }
        }
        Ok(())
    }

    /// Returns how often a test is green by itself.
    async fn greens(&self, replaced: &HashMap<String, String>, test: &'a Test) -> Result<usize, Failure> {
        let mut greens = 0;
        for _ in 0..AGAIN {
            let ran = self.tests(replaced, &[test], 1).await?;
            greens += usize::from(matches!(ran.ended, Ended::Green));
        }
        Ok(greens)
    }

    async fn reds(
        &self,
        replaced: &HashMap<String, String>,
        mut tests: Vec<&'a Test>,
    ) -> Result<Vec<&'a Test>, Failure> {
        let mut reds = Vec::new();
        loop {
            let ran = self.tests(replaced, &tests, THREADS).await?;
            let (Ended::Red(test) | Ended::Hung(test)) = ran.ended else { return Ok(reds) };
            reds.push(test);
            tests.retain(|other| *other != test && !ran.passed.contains(other));
        }
    }
}

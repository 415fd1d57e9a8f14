//! What clients reported, kept for the caretaker beside the layout server.
//!
//! Reports are hints: losing one costs a little time, so the list is short, and the oldest gives way.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use milonga_wire::limits::{SPANS_MAX, TEXT_BYTES_MAX};
use milonga_wire::{Refusal, Report, ServerName};
use tokio::sync::Notify;

/// A report, and who made it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Noted {
    /// The certificate name of whoever made it.
    pub by: ServerName,
    /// The report.
    pub report: Report,
}

/// The list.
#[derive(Debug)]
pub struct Reports {
    list: Mutex<VecDeque<Noted>>,
    count_max: usize,
    arrived: Notify,
}

impl Reports {
    /// An empty list of at most `count_max` reports.
    pub fn new(count_max: usize) -> Self {
        Self {
            list: Mutex::default(),
            count_max: count_max.max(1),
            arrived: Notify::new(),
        }
    }

    /// Notes a report. What the same client reported of the same server before gives way, and so does a repetition:
    /// a thousand clients that see one failure may fill the list, one client cannot.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] over the limits of a report.
    pub fn note(&self, by: ServerName, report: Report) -> Result<(), Refusal> {
        check(&report)?;
        let mut list = self.list();
        list.retain(|noted| !(noted.by == by && same_subject(&noted.report, &report)));
        if list.len() == self.count_max {
            list.pop_front();
        }
        list.push_back(Noted { by, report });
        drop(list);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes all there are, oldest first.
    pub fn take(&self) -> Vec<Noted> {
        self.list().drain(..).collect()
    }

    /// Waits until there is one, then takes all. For one caretaker.
    pub async fn next(&self) -> Vec<Noted> {
        loop {
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.list().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    fn list(&self) -> MutexGuard<'_, VecDeque<Noted>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(report: &Report) -> Result<(), Refusal> {
    match report {
        Report::Holes { spans, .. } | Report::Damaged { spans, .. } if spans.len() > SPANS_MAX => {
            Err(Refusal::too_large(
                "spans in a report",
                spans.len(),
                SPANS_MAX as u32,
            ))
        }
        Report::Suspect { why, .. } if why.len() > TEXT_BYTES_MAX => Err(Refusal::too_large(
            "bytes of text in a report",
            why.len(),
            TEXT_BYTES_MAX as u32,
        )),
        Report::Holes { .. } | Report::Suspect { .. } | Report::Damaged { .. } => Ok(()),
    }
}

fn same_subject(one: &Report, other: &Report) -> bool {
    match (one, other) {
        (Report::Suspect { server: a, .. }, Report::Suspect { server: b, .. }) => a == b,
        (Report::Holes { spans: a, .. }, Report::Holes { spans: b, .. }) => a == b,
        (
            Report::Damaged { server, spans },
            Report::Damaged {
                server: other,
                spans: others,
            },
        ) => (server, spans) == (other, others),
        (Report::Suspect { .. } | Report::Holes { .. } | Report::Damaged { .. }, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use milonga_wire::{Position, Span};

    use super::*;

    fn suspect(server: &str, why: &str) -> Report {
        Report::Suspect {
            server: server.parse().unwrap(),
            why: why.to_owned(),
        }
    }

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }

    #[test]
    fn one_client_cannot_push_the_others_reports_out_by_repeating_its_own() {
        let reports = Reports::new(2);
        reports.note(name("a"), suspect("u-1", "silent")).unwrap();
        for attempt in 0..10 {
            let why = format!("attempt {attempt}");
            reports.note(name("b"), suspect("u-2", &why)).unwrap();
        }

        let by: Vec<ServerName> = reports.take().into_iter().map(|noted| noted.by).collect();
        assert_eq!(by, [name("a"), name("b")]);
        assert!(reports.is_empty());
    }

    #[test]
    fn a_full_list_drops_the_oldest_and_an_oversized_report_is_refused() {
        let reports = Reports::new(2);
        for server in ["u-1", "u-2", "u-3"] {
            reports.note(name("a"), suspect(server, "silent")).unwrap();
        }
        let long = suspect("u-4", &"x".repeat(TEXT_BYTES_MAX + 1));
        assert!(matches!(
            reports.note(name("a"), long),
            Err(Refusal::TooLarge { .. })
        ));
        let wide = Report::Holes {
            spans: vec![Span::one(Position(1)); SPANS_MAX + 1],
            end: Position(2),
        };
        assert!(matches!(
            reports.note(name("a"), wide),
            Err(Refusal::TooLarge { .. })
        ));

        let kept: Vec<Report> = reports.take().into_iter().map(|n| n.report).collect();
        assert_eq!(kept, [suspect("u-2", "silent"), suspect("u-3", "silent")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caretaker_is_woken_by_a_report() {
        let reports = Reports::new(4);
        let (taken, ()) = tokio::join!(biased; reports.next(), async {
            reports.note(name("a"), suspect("u-1", "silent")).unwrap();
        });
        assert_eq!(taken.len(), 1);
    }
}

//! Steps that wait before they are tried again: what failed, later each time, and what is repeated though it was done.

use std::collections::BTreeMap;
use std::time::Duration;

use moorline_shared::observed::Moment;
use moorline_shared::plan::Step;

/// The first pause of a step.
const SHORTEST: Duration = Duration::from_millis(500);
/// How often the pause of a step that fails is doubled.
const FAILING: u32 = 6;
/// And of one that is repeated.
const REPEATED: u32 = 4;

#[derive(Default)]
pub(super) struct Setbacks(BTreeMap<Step, Setback>);

struct Setback {
    /// How often the step was tried.
    count: u32,
    until: Moment,
    /// Why it failed, if it did.
    said: Option<String>,
}

impl Setbacks {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Step) -> bool) {
        self.0.retain(|step, _| keep(step));
    }

    /// What fails, and why.
    pub(super) fn failing(&self) -> impl Iterator<Item = (&Step, &str)> {
        self.0.iter().filter_map(|(step, setback)| Some((step, setback.said.as_deref()?)))
    }

    /// Why one of these fails: of several, the one that is tried again last.
    pub(super) fn failure(&self, concerns: impl Fn(&Step) -> bool) -> Option<&str> {
        let failing = self.0.iter().filter(|(step, setback)| setback.said.is_some() && concerns(step));
        failing.max_by_key(|(_, setback)| setback.until).and_then(|(_, setback)| setback.said.as_deref())
    }

    /// Whether a step has to wait. What is urgent does not, unless it fails.
    pub(super) fn holds_back(&self, step: &Step, now: Moment, is_urgent: impl FnOnce() -> bool) -> bool {
        let pause = self.0.get(step).filter(|setback| setback.until > now);
        pause.is_some_and(|setback| setback.said.is_some() || !is_urgent())
    }

    /// It was done. Should it be to be done again: less and less often.
    pub(super) fn done_for_now(&mut self, step: Step, now: Moment) {
        self.pause(step, now, REPEATED).said = None;
    }

    /// Whether that was not said of it before.
    pub(super) fn failed(&mut self, step: Step, now: Moment, said: &str) -> bool {
        let before = self.pause(step, now, FAILING).said.replace(said.to_owned());
        before.as_deref() != Some(said)
    }

    fn pause(&mut self, step: Step, now: Moment, doublings: u32) -> &mut Setback {
        let setback = self.0.entry(step).or_insert(Setback { count: 0, until: now, said: None });
        setback.until = now + SHORTEST * 2u32.pow(setback.count.min(doublings));
        setback.count += 1;
        setback
    }
}

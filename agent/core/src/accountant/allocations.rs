//! Allocated time: for how long containers were given GPUs, used or not.

use std::sync::Arc;

use crate::accountant::Accountant;
use crate::allocation::{AllocationHolder, Known, Span};
use crate::effect::Effect;
use crate::input::GpuInfo;
use crate::model::{BootTime, Clock, ContainerId, Owner};
use crate::snapshot::{AllocatedDeviceView, AllocationState, AllocationView};
use crate::tables::{HashMap, HashSet};

impl Accountant {
    /// Books allocated time, opens accounts for it, and requests missing names and allocations.
    pub(super) fn book_allocations(&mut self, live: &HashSet<Owner>, clock: Clock) {
        // Exits of the last moments may still be in the ring.
        let is_fresh =
            clock.boot.since(self.tracker.events().drained_through()) < self.settings.await_events;
        let now = if is_fresh {
            clock.boot.min(self.tracker.events().drained_through())
        } else {
            clock.boot
        };
        self.measure_lives(live, now);
        for id in self.allocations.unnamed() {
            if let Some(names) = self.naming.directory().kubernetes(&id)
                && let Some(pod) = self.allocations.name(&id, names)
            {
                self.effects.push(Effect::ReadAllocations(pod));
            }
        }
        let directory = self.naming.directory_mut();
        let wanted = self
            .allocations
            .wanted(|id| directory.should_ask(id, clock.boot));
        for id in wanted {
            self.effects.push(Effect::LookUp(id));
        }

        let gpus = self.ledger.books().iter().map(|book| Known {
            info: &book.gpu,
            is_listed: book.is_listed,
        });
        let ledger = &self.ledger;
        let counted = |container: &ContainerId, gpu| {
            let account = ledger.account(gpu, &Owner::Container(container.clone()));
            account.and_then(|account| account.allocated_through)
        };
        for stretch in self.allocations.count_until(now, gpus, counted) {
            let book = &self.ledger.books()[stretch.gpu];
            if book.is_gone(now) {
                continue; // It would open an account that is closed at once, again and again.
            }
            // The next window begins where the last one ended, which may be before the container
            // started.
            let opened = match book.through {
                Some(through) => clock.at(through.min(stretch.from)),
                None => Clock {
                    wall: book.start.min(clock.wall_of(stretch.from)),
                    boot: stretch.from,
                },
            };
            let span = (stretch.from, stretch.from.plus(stretch.amount));
            // A full ledger counts the accounts that it does not open.
            let owner = Owner::Container(stretch.container.clone());
            if self.ledger.allocate(stretch.gpu, &owner, opened, span) {
                let (from, until) = span;
                self.shares
                    .hold(stretch.gpu, &stretch.container, from, until);
            }
        }
        for share in self.shares.divide(clock.boot) {
            let owner = Owner::Container(share.container);
            if let Some(account) = self.ledger.account_mut(share.gpu, &owner) {
                account.add_share(share.amount);
            }
        }
    }

    /// Updates the lifetimes of containers that started or ended since the last call.
    fn measure_lives(&mut self, live: &HashSet<Owner>, now: BootTime) {
        if self.tracker.awaits_scan(now) {
            return;
        }
        let is_live = |id: &ContainerId| live.contains(&Owner::Container(id.clone()));
        let known: HashMap<ContainerId, Span> = self
            .allocations
            .spans()
            .filter(|(id, span)| is_live(id) == span.end.is_some())
            .map(|(id, span)| (id.clone(), span))
            .collect();
        let mut changed = std::mem::take(&mut self.new_in_pods);
        changed.extend(known.keys().cloned());
        if changed.is_empty() {
            return;
        }
        let mut spans = self.tracker.lives_of(&changed);
        for id in changed {
            let lost = known.get(&id).map(|span| Span {
                end: Some(now),
                ..*span
            });
            if let Some(span) = spans.remove(&id).or(lost) {
                self.allocations.meet(&id, span);
            }
        }
    }

    /// Allocations of the kubelet, with their containers.
    pub(super) fn allocation_views(&self, clock: Clock) -> Vec<AllocationView> {
        let holdings = self.allocations.grantees();
        let views = holdings.iter().map(|holding| self.view(holding, clock));
        views.collect()
    }

    pub(super) fn allocation_of(&self, id: &ContainerId, clock: Clock) -> Option<AllocationView> {
        let holdings = self.allocations.grantees();
        let found = holdings.iter().find(|of| of.container == Some(id))?;
        Some(self.view(found, clock))
    }

    fn view(&self, holding: &AllocationHolder<'_>, clock: Clock) -> AllocationView {
        let gpus: Vec<&GpuInfo> = self.ledger.books().iter().map(|book| &book.gpu).collect();
        let state = match (holding.container, holding.ended, holding.is_listed) {
            (None, _, _) => AllocationState::NoContainer,
            (Some(_), Some(_), _) => AllocationState::Ended,
            (Some(_), None, true) => AllocationState::Counting,
            (Some(_), None, false) if holding.is_unconfirmed => AllocationState::Unconfirmed,
            (Some(_), None, false) => AllocationState::Forgotten,
        };
        AllocationView {
            namespace: Arc::clone(&holding.name.namespace),
            pod: Arc::clone(&holding.name.pod),
            container: Arc::clone(&holding.name.container),
            id: holding.container.cloned(),
            state,
            devices: holding
                .grants
                .iter()
                .map(|grant| AllocatedDeviceView {
                    resource: Arc::clone(&grant.device.resource),
                    id: Arc::clone(&grant.device.id),
                    is_known: grant.device.device.is_some(),
                    gpus: grant
                        .device
                        .device
                        .iter()
                        .flat_map(|device| self.allocations.gpus_of(device, &gpus))
                        .map(|at| gpus[at].uuid.clone())
                        .collect(),
                    since: clock.wall_of(grant.since),
                })
                .collect(),
        }
    }
}

//! The sending end: the protocol's own transmit session, given whatever bundle a test likes.

use std::time::Duration;

use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::SessionId;
use checkvalve_protocol::seal::Sealer;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::transmit::{
    Batch, Encoder, Parameters, Selection, StreamId, Task, Transmit, Transmitter, Work, WorkShape,
};

use super::Bundle;

/// A sender's session.
pub struct Low {
    parameters: Parameters,
    sealer: Sealer,
    transmitter: Transmitter,
    plans: Plans,
    now: Time,
}

impl Low {
    /// A session under `link_key`.
    pub fn new(link_key: &[u8; 32], session: u64, parameters: Parameters) -> Self {
        let sealer = Sealer::new(Some(link_key), SessionId(session));
        let transmitter = Transmitter::new(&sealer, &parameters, Duration::from_millis(1));
        Self { parameters, sealer, transmitter, plans: Plans::new(), now: Time(1_000_000_000) }
    }

    /// One pass over a bundle: every datagram with the time of its departure. `pass` counts from 0; every pass has ESIs
    /// of its own.
    ///
    /// # Panics
    /// When the bundle cannot be encoded, because an object of it exceeds the protocol's limits.
    pub fn transmit(&mut self, bundle: &Bundle, pass: u32) -> Vec<(Time, Vec<u8>)> {
        let shape = WorkShape {
            bundle: bundle.id,
            announce_len: bundle.announce.len() as u64,
            data_len: bundle.data.len() as u64,
            selection: Selection::All,
            first_esi: pass * self.parameters.esis_per_pass(),
        };
        let mut work = Work::new(&self.parameters, &shape).expect("a bundle that can be coded");
        let stream = self.transmitter.schedule().open(work.stream(0));
        let mut tasks: Vec<Task> = std::iter::from_fn(|| work.next_task()).collect();
        work.hashes(bundle.hashes.len() as u64).expect("hashes that can be coded");
        tasks.extend(std::iter::from_fn(|| work.next_closing()));

        let mut tasks = tasks.into_iter();
        let (mut batch, mut sent, mut closed) = (Batch::new(), Vec::new(), false);
        loop {
            while !closed && self.transmitter.schedule().held() <= self.parameters.depth() as usize {
                match tasks.next() {
                    Some(task) => self.push(stream, &task, bundle),
                    None => {
                        self.transmitter.schedule().close(stream);
                        closed = true;
                    }
                }
            }
            match self.transmitter.poll_transmit(self.now, &mut batch, Some(&self.sealer)) {
                Transmit::Ready => {
                    sent.extend(batch.datagrams().map(|datagram| (self.now, datagram.to_vec())));
                }
                Transmit::Wait(at) => self.now = at,
                Transmit::Idle => break,
            }
            while self.transmitter.schedule().poll_spent().is_some() {}
        }
        sent
    }

    fn push(&mut self, stream: StreamId, task: &Task, bundle: &Bundle) {
        let object = bundle.object(task.symbol.kind);
        let from = usize::try_from(task.offset).expect("an object in memory");
        let mut source = object[from..from + task.len].to_vec();
        source.resize(Encoder::padded_len(task), 0);
        let coded = Encoder::new(&self.plans).encode(task, source, Vec::new());
        let (block, _) = coded.expect("a block that can be coded");
        self.transmitter.schedule().push(stream, block);
    }
}

impl std::fmt::Debug for Low {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Low").field("session", &self.sealer.session()).field("now", &self.now).finish_non_exhaustive()
    }
}

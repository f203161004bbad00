//! The network loses, delays and repeats calls and answers, and cuts workers off.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use llink_proto::reach::INSTANCE_KEY;
use llink_proto::{Instruction, instruction};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Status};

use super::super::super::access::Peer;
use super::world::{Host, OUTSIDE};
use super::{Fault, Server, Sim};
use crate::schedule::Millis;

/// Both sides close a connection that is silent for this long.
const KEEPALIVE: Millis = 20_000;

/// The answer of a coordinator to one delivery of a call.
pub(super) type Answer<A> = BoxFuture<'static, Result<A, Status>>;

pub(super) fn request<T>(message: T, secret: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Peer::anybody());
    if let Ok(secret) = secret.parse() {
        request.metadata_mut().insert(INSTANCE_KEY, secret);
    }
    request
}

fn lost() -> Status {
    Status::unavailable("the connection broke")
}

impl Sim {
    async fn travel(&self) {
        let late = if self.may(Fault::Delay, 10) { 5_000 } else { 15 };
        self.world.clone().sleep(self.world.between(1, late)).await;
    }

    /// Calls a coordinator. `from` is the worker that calls.
    pub(super) async fn call<A: Send + 'static>(
        self: &Arc<Self>,
        from: usize,
        place: usize,
        ask: impl Fn(Arc<Server>) -> Answer<A> + Clone + Send + 'static,
    ) -> Result<A, Status> {
        if self.is_cut(from) || self.may(Fault::Loss, 60) {
            self.world.sleep(self.world.between(10, KEEPALIVE)).await;
            return Err(lost());
        }
        self.travel().await;
        if self.may(Fault::Repetition, 30) {
            self.repeat_later(place, ask.clone());
        }
        let Some(server) = self.server(place) else {
            self.world.sleep(50).await;
            return Err(lost());
        };
        let (host, (tell, mut told)) = (server.host, oneshot::channel());
        self.world.spawn(host, async move { drop(tell.send(ask(server).await)) });
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut told => break answer,
                () = self.world.sleep(KEEPALIVE) => if self.world.is_halted(host) {
                    return Err(lost());
                }
            }
        };
        self.travel().await;
        if self.is_cut(from) || self.may(Fault::Loss, 60) {
            drop(answer);
            self.world.sleep(self.world.between(10, KEEPALIVE)).await;
            return Err(lost());
        }
        answer.unwrap_or_else(|_| Err(lost()))
    }

    /// Delivers the same message again later. The coordinator may have been started again by then.
    fn repeat_later<A: Send + 'static>(
        self: &Arc<Self>,
        place: usize,
        ask: impl Fn(Arc<Server>) -> Answer<A> + Send + 'static,
    ) {
        let (sim, wait) = (self.clone(), self.world.between(0, 40_000));
        self.world.spawn(OUTSIDE, async move {
            sim.world.sleep(wait).await;
            if let Some(server) = sim.server(place) {
                let host = server.host;
                sim.world.spawn(host, async move { drop(ask(server).await) });
            }
        });
    }

    /// Delivers a worker's instructions in order, until the connection breaks.
    pub(super) async fn carry(
        self: Arc<Self>,
        server: Arc<Server>,
        mut stream: super::super::super::workers::Assignments,
        (number, worker): (usize, Host),
        to: mpsc::UnboundedSender<Instruction>,
    ) {
        let mut silent = 0;
        loop {
            tokio::select! {
                biased;
                next = stream.next() => {
                    let Some(Ok(instruction)) = next else { return };
                    if let Some(instruction::Kind::Start(start)) = &instruction.kind {
                        self.ledger().leased(&server, number, start);
                    }
                    while self.is_cut(number) {
                        self.world.sleep(1_000).await;
                    }
                    self.travel().await;
                    let _ = to.send(instruction);
                    if self.may(Fault::Breaks, 60) {
                        // The worker notices the break before the coordinator does.
                        drop(to);
                        return self.world.sleep(self.world.between(0, KEEPALIVE)).await;
                    }
                }
                () = to.closed() => {
                    let notices = if self.world.one_in(2) { 0 } else { KEEPALIVE };
                    return self.world.sleep(self.world.between(0, notices)).await;
                }
                () = self.world.sleep(KEEPALIVE / 2) => {
                    let holds = !self.is_cut(number) && !self.world.is_halted(worker);
                    silent = if holds { 0 } else { silent + 1 };
                    if silent > 1 {
                        return;
                    }
                }
            }
        }
    }
}

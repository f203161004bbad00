//! An object store that is slow, fails, and loses answers. A request takes effect even if its process has died.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::oneshot;

use super::world::OUTSIDE;
use super::{Fault, Sim};

pub(super) struct Objects {
    pub(super) inside: Arc<InMemory>,
    pub(super) sim: Arc<Sim>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

fn failed(why: &str) -> Error {
    Error::Generic { store: "simulated", source: why.into() }
}

/// Runs a request in the store after a delay.
async fn ask<T: Send + 'static>(sim: &Arc<Sim>, what: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let slow = if sim.may(Fault::SlowStore, 20) { 8_000 } else { 20 };
    let delay = sim.world.between(0, slow);
    if sim.may(Fault::Store, 300) {
        sim.world.sleep(delay).await;
        return Err(failed("500 Internal Server Error"));
    }
    let (done, is_done) = oneshot::channel();
    let (world, lost) = (sim.world.clone(), sim.may(Fault::Store, 300));
    sim.world.spawn(OUTSIDE, async move {
        world.sleep(delay).await;
        let _ = done.send(what.await);
    });
    match is_done.await {
        Ok(answer) if !lost => answer,
        _ => Err(failed("connection reset by peer")),
    }
}

/// Returns true for an entry of a replica by which no coordinator takes the lead.
fn is_change(payload: &PutPayload) -> bool {
    let starts = |start: &[u8]| payload.iter().any(|part| part.starts_with(start));
    starts(br#"{"version":1,"kind":"#) && !starts(br#"{"version":1,"kind":"seal""#)
}

/// Removes the time of the last write, which differs from run to run.
fn timeless(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta { last_modified: Default::default(), ..meta }
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (inside, mut location) = (self.inside.clone(), location.clone());
        let hides = self.sim.plan.hides_successors && is_change(&payload);
        let put = async move {
            if hides && inside.head(&location).await.is_ok() {
                location = Path::from(format!("hidden/{location}"));
            }
            inside.put_opts(&location, payload, options).await
        };
        ask(&self.sim, put).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(failed("no uploads in parts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (inside, location) = (self.inside.clone(), location.clone());
        let found = ask(&self.sim, async move { inside.get_opts(&location, options).await }).await?;
        Ok(GetResult { meta: timeless(found.meta), ..found })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inside, sim) = (self.inside.clone(), self.sim.clone());
        let delete = move |location: Path| {
            let (inside, sim) = (inside.clone(), sim.clone());
            async move {
                let deleted = async move {
                    let one = stream::iter([Ok(location)]).boxed();
                    inside.delete_stream(one).try_collect::<Vec<Path>>().await
                };
                ask(&sim, deleted).await.map(|mut paths| paths.remove(0))
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inside, sim, prefix) = (self.inside.clone(), self.sim.clone(), prefix.cloned());
        let listed = async move {
            let listed = async move { inside.list(prefix.as_ref()).try_collect::<Vec<_>>().await };
            let found = ask(&sim, listed).await?.into_iter();
            Ok::<_, Error>(stream::iter(found.map(|meta| Ok(timeless(meta)))))
        };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(failed("no listing of one level"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(failed("no copies"))
    }
}

//! A repository of the Hub as a read-only object store.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::super::ObjectInfo;
use super::HubRepo;

const STORE: &str = "Hub";

/// Reads objects through the Hub's cache.
#[derive(Debug)]
pub(in super::super) struct HubObjects(pub(in super::super) Arc<HubRepo>);

impl fmt::Display for HubObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hub")
    }
}

#[async_trait]
impl ObjectStore for HubObjects {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            let found = self.0.head(location.as_ref()).await.map_err(failed)?;
            let info = found.ok_or_else(|| Error::NotFound {
                path: location.to_string(),
                source: "the repository has no such file".into(),
            })?;
            return Ok(GetResult {
                payload: GetResultPayload::Stream(stream::empty().boxed()),
                meta: meta(info),
                range: 0..0,
                attributes: Default::default(),
                extensions: Default::default(),
            });
        }
        let file = self.0.file(location.as_ref()).await.map_err(failed)?;
        let kept = Path::from_absolute_path(&file)?;
        let mut result = LocalFileSystem::new().get_opts(&kept, options).await?;
        result.meta.location = location.clone();
        Ok(result)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (repo, prefix) = (Arc::clone(&self.0), prefix.cloned().unwrap_or_default());
        let listed = async move {
            let found = repo.list().await.map_err(failed)?.into_iter().map(meta);
            let below = found.filter(move |meta| meta.location.prefix_matches(&prefix));
            Ok::<_, Error>(stream::iter(below.map(Ok)))
        };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(Error::NotImplemented { operation: "list_with_delimiter".into(), implementer: STORE.into() })
    }

    async fn put_opts(&self, location: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(read_only(location))
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(read_only(location))
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        locations.map(|location| location.and_then(|location| Err(read_only(&location)))).boxed()
    }

    async fn copy_opts(&self, _: &Path, to: &Path, _: CopyOptions) -> Result<()> {
        Err(read_only(to))
    }
}

fn meta(info: ObjectInfo) -> ObjectMeta {
    ObjectMeta {
        // The path is as on the Hub, where `#` and `%` are ordinary characters.
        location: Path::parse(&info.path).unwrap_or_else(|_| Path::from(info.path.as_str())),
        last_modified: Default::default(),
        size: info.bytes,
        e_tag: info.e_tag,
        version: None,
    }
}

fn failed(error: crate::Error) -> Error {
    match error {
        crate::Error::NotFound { path } => Error::NotFound { path, source: "the repository has no such file".into() },
        error => Error::Generic { store: STORE, source: Box::new(error) },
    }
}

fn read_only(location: &Path) -> Error {
    Error::PermissionDenied { path: location.to_string(), source: "a repository of the Hub is only read".into() }
}

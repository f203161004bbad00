//! Checks every URL of a task outside its output against this worker's roots. This limits the damage of a compromised
//! coordinator.
//!
//! Every field of every task is named here, so that a new field does not compile before somebody decides about it.
//! Paths and artifacts are relative to the output, and the store refuses paths that leave it.

#[cfg(test)]
mod tests;

use llink_datasets::roots::{Roots, check_key_variable};
use llink_proto::task::Kind;
use llink_proto::{
    Align, Answers, CleanSource, EmbedShard, Evaluate, Export, FitStatistics, Instruct, Judge, ModelEndpoint, ModelRef,
    PrepareModel, Source, SplitCorpus, Synthesize, Task, WriteShard,
};

/// The URLs that a task names outside its output.
#[derive(Default)]
struct Named<'a> {
    urls: Vec<&'a str>,
    models: Vec<&'a ModelRef>,
    key_variables: Vec<&'a str>,
}

/// Refuses a task that names a URL outside the roots.
pub(super) fn check(task: &Task, roots: &Roots) -> Result<(), String> {
    let named = Named::of(task);
    // A fingerprint names a folder on this machine.
    for ModelRef {
        role: _,
        url,
        fingerprint,
        reading: _,
    } in &named.models
    {
        if fingerprint.is_empty() || !fingerprint.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(format!("{url}: {fingerprint:?} is not a model's fingerprint"));
        }
    }
    if *roots == Roots::Any {
        return Ok(());
    }
    named.key_variables.into_iter().try_for_each(check_key_variable)?;
    let models = named.models.iter().map(|model| model.url.as_str());
    named
        .urls
        .into_iter()
        .chain(models)
        .filter(|url| !url.is_empty())
        .try_for_each(|url| roots.admit(url))
}

impl<'a> Named<'a> {
    fn of(task: &'a Task) -> Self {
        let Task { output_url, kind } = task;
        let mut named = Self::default();
        named.urls.push(output_url);
        match kind {
            Some(Kind::CleanSource(task)) => named.clean_source(task),
            Some(Kind::SplitCorpus(task)) => within_split_corpus(task),
            Some(Kind::WriteShard(task)) => within_write_shard(task),
            Some(Kind::Synthesize(task)) => named.synthesize(task),
            Some(Kind::PrepareModel(task)) => named.prepare_model(task),
            Some(Kind::EmbedShard(task)) => named.embed_shard(task),
            Some(Kind::FitStatistics(task)) => within_fit_statistics(task),
            Some(Kind::Align(task)) => within_align(task),
            Some(Kind::Instruct(task)) => named.instruct(task),
            Some(Kind::Evaluate(task)) => named.evaluate(task),
            Some(Kind::Export(task)) => named.export(task),
            None => {}
        }
        named
    }

    fn clean_source(&mut self, task: &'a CleanSource) {
        let CleanSource {
            corpus: _,
            source,
            rules: _,
            sample_rows: _,
            seed: _,
            with_signatures: _,
            path: _,
        } = task;
        source.iter().for_each(|source| self.source(source));
    }

    fn source(&mut self, source: &'a Source) {
        let Source {
            url,
            foreign_url,
            format: _,
            compression: _,
            english_column: _,
            foreign_column: _,
            english_language: _,
            foreign_language: _,
            label: _,
        } = source;
        // This source is not a place, because its rows are made up.
        self.urls.extend(
            [url, foreign_url]
                .map(String::as_str)
                .into_iter()
                .filter(|url| *url != "sample"),
        );
    }

    fn synthesize(&mut self, task: &'a Synthesize) {
        let Synthesize {
            pairs: _,
            rows: _,
            prompts: _,
            endpoint,
            rules: _,
            path: _,
            role: _,
            stage_key: _,
            cache: _,
            skip: _,
        } = task;
        endpoint.iter().for_each(|endpoint| self.endpoint(endpoint));
    }

    fn endpoint(&mut self, endpoint: &'a ModelEndpoint) {
        let ModelEndpoint {
            url,
            model: _,
            api_key_env,
            concurrency: _,
            requests_per_minute: _,
            timeout_s: _,
            attempts: _,
            max_tokens: _,
            temperature: _,
            refusals: _,
        } = endpoint;
        self.urls.push(url);
        self.key_variables.push(api_key_env);
    }

    fn prepare_model(&mut self, task: &'a PrepareModel) {
        let PrepareModel {
            role: _,
            source,
            seed: _,
            text_shards: _,
            path: _,
            pooling: _,
            normalize: _,
            prefix: _,
        } = task;
        // These models are made, or come with this program.
        self.urls
            .extend(Some(source.as_str()).filter(|source| !matches!(*source, "tiny" | "random")));
    }

    fn embed_shard(&mut self, task: &'a EmbedShard) {
        let EmbedShard {
            model,
            shard: _,
            path: _,
            role: _,
            token_budget: _,
            max_chars: _,
            max_tokens: _,
            rows: _,
            english: _,
            pooled: _,
        } = task;
        self.models.extend(model);
    }

    fn instruct(&mut self, task: &'a Instruct) {
        let Instruct {
            instructions: _,
            encoder_vectors: _,
            teacher_vectors: _,
            projector: _,
            decoder,
            options: _,
            directory: _,
            upkeep: _,
            held_out_instructions: _,
            held_out_encoder_vectors: _,
            held_out_teacher_vectors: _,
            validation_examples: _,
            token_budget: _,
            recompute: _,
            max_tokens: _,
        } = task;
        self.models.extend(decoder);
    }

    fn evaluate(&mut self, task: &'a Evaluate) {
        let Evaluate {
            encoder_vectors: _,
            teacher_vectors: _,
            pair_shards: _,
            projector: _,
            benchmark_pairs: _,
            decoder,
            path: _,
            answers,
            judge,
            page: _,
            align_metrics: _,
            instruct_metrics: _,
            english_vectors: _,
            centre_foreign_vectors: _,
            centre_english_vectors: _,
            benchmark: _,
            statistics: _,
        } = task;
        self.models.extend(decoder);
        answers.iter().for_each(within_answers);
        judge.iter().for_each(|judge| self.judge(judge));
    }

    fn judge(&mut self, task: &'a Judge) {
        let Judge {
            endpoint,
            examples: _,
            direct_answers,
            max_answer_tokens: _,
            max_tokens: _,
            path: _,
            cache: _,
        } = task;
        endpoint.iter().for_each(|endpoint| self.endpoint(endpoint));
        self.urls.push(direct_answers);
    }

    fn export(&mut self, task: &'a Export) {
        let Export {
            directory: _,
            projector: _,
            adapter: _,
            adapter_config: _,
            slots: _,
            encoder,
            decoder,
            encoder_name: _,
            decoder_name: _,
            encoder_source: _,
            decoder_source: _,
            max_chars: _,
            max_tokens: _,
            text_tokens: _,
            instructions: _,
            model_card: _,
            statistics: _,
        } = task;
        // The sources are written into the bundle and are not opened here.
        self.models.extend(encoder);
        self.models.extend(decoder);
    }
}

// All of these are inside the output.

fn within_split_corpus(task: &SplitCorpus) {
    let SplitCorpus {
        corpus: _,
        cleaned: _,
        train_rows: _,
        holdout_rows: _,
        shard_rows: _,
        path: _,
        near_duplicates: _,
        similarity: _,
        second_hash: _,
        pairs_train_rows: _,
        pairs_holdout_rows: _,
    } = task;
}

fn within_write_shard(task: &WriteShard) {
    let WriteShard {
        corpus: _,
        cleaned: _,
        assignment: _,
        shard: _,
        path: _,
        role: _,
        stage_key: _,
    } = task;
}

fn within_fit_statistics(task: &FitStatistics) {
    let FitStatistics {
        encoder_vectors: _,
        teacher_vectors: _,
        metric: _,
        whitening_eps: _,
        start_at_teachers: _,
        standardize: _,
        path: _,
    } = task;
}

fn within_align(task: &Align) {
    let Align {
        encoder_vectors: _,
        teacher_vectors: _,
        options: _,
        directory: _,
        upkeep: _,
        held_out_encoder_vectors: _,
        held_out_teacher_vectors: _,
        validation_pairs: _,
        micro_batch: _,
        statistics: _,
    } = task;
}

fn within_answers(task: &Answers) {
    let Answers {
        instructions: _,
        encoder_vectors: _,
        adapter: _,
        adapter_config: _,
        slots: _,
        examples: _,
        max_answer_tokens: _,
        max_tokens: _,
        path: _,
        direct_adapter: _,
        direct_adapter_config: _,
        projector: _,
        trained_as_pairs: _,
    } = task;
}

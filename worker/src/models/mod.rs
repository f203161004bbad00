//! The frozen models and their tokenizers.

//! A macro for loops that are compiled twice: for any processor, and for one with AVX2, which is chosen where it is there.

/// Defines a function whose loops use 256-bit vectors where the processor has them. Without fused multiply-add and with sums over
/// a fixed number of lanes, its results are the same bits either way.
///
/// What the body calls takes part only when it is inlined: mark it `#[inline(always)]`, and keep closures small.
macro_rules! vectorized {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($argument: $type),*) $(-> $result)? {
                    body($($argument),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has what the function is compiled for.
                    return unsafe { wide($($argument),*) };
                }
            }
            body($($argument),*)
        }
    };
}

pub(crate) use vectorized;

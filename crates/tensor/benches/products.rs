//! Prints GFLOP/s of the products at the shapes that calibration runs: `cargo bench -p halfbyte-tensor`.

use halfbyte_tensor::{Precision, Rows, gram, isa, product_into};
use std::time::Instant;

fn main() {
    println!("{:?}, {} threads", isa(), rayon::current_num_threads());
    for (t, n, k) in
        [(512, 576, 576), (512, 1536, 576), (512, 576, 1536), (2048, 1536, 576), (512, 4096, 4096)]
    {
        let x: Vec<f32> = (0..t * k).map(|i| (i % 97) as f32 / 97.0).collect();
        let w: Vec<half::bf16> = (0..n * k).map(|i| half::bf16::from_f32((i % 89) as f32 / 89.0)).collect();
        print!("{t:5} x {n:5} x {k:5}:");
        for precision in [Precision::F32, Precision::Bf16] {
            let mut out = vec![0.0; t * n];
            product_into(&Rows::new(&x, k), &Rows::new(&w, k), &mut out, n, precision);
            let repeats = (4_000_000_000 / (t * n * k)).max(1);
            let start = Instant::now();
            for _ in 0..repeats {
                product_into(&Rows::new(&x, k), &Rows::new(&w, k), &mut out, n, precision);
            }
            let forward = (2 * t * n * k * repeats) as f64 / start.elapsed().as_secs_f64() / 1e9;
            let mut g = vec![0.0; k * k];
            gram(&x, k, &mut g, precision);
            let repeats = (4_000_000_000 / (t * k * k)).max(1);
            let start = Instant::now();
            for _ in 0..repeats {
                gram(&x, k, &mut g, precision);
            }
            // Half the products of a full one.
            let useful = (t * k * k * repeats) as f64 / start.elapsed().as_secs_f64() / 1e9;
            print!("  {precision:?} product {forward:6.1}, gram {useful:6.1}");
        }
        println!();
    }
}

// SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in the eigenvector basis of Shampoo's two covariances of a matrix's
// gradient. nbs/learn/soap.ipynb has the same in torch.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct SoapSettings { float learning_rate, beta1, beta2, beta_covariance; int32_t interval; };  // updates between rotations

// ---------------------------------------------------------------- small dense matrices, row-major
// c (n, m) = a (n, k) b (k, m); `at`, `bt`: a, b are stored transposed
template <bool at, bool bt> void product(const float* a, const float* b, int n, int k, int m, float* c) {
    for (int i = 0; i < n; i++) {
        float* row = c + (size_t)i * m;
        if (bt) {
            for (int j = 0; j < m; j++) {
                float total = 0;
                for (int l = 0; l < k; l++) total += (at ? a[l * n + i] : a[i * k + l]) * b[j * k + l];
                row[j] = total;
            }
        } else {
            std::fill(row, row + m, 0.f);
            for (int l = 0; l < k; l++) {
                const float x = at ? a[l * n + i] : a[i * k + l];
                for (int j = 0; j < m; j++) row[j] += x * b[l * m + j];
            }
        }
    }
}
// The orthonormal factor of a (n, n), by Householder reflections; `a` is overwritten
void orthonormal(float* a, int n, float* q) {
    std::vector<float> scale(n);
    for (int k = 0; k < n; k++) {
        double squares = 0;
        for (int i = k; i < n; i++) squares += (double)a[i * n + k] * a[i * n + k];
        const float norm = (float)std::sqrt(squares), pivot = a[k * n + k];
        const float head = pivot + (pivot < 0 ? -norm : norm);
        scale[k] = norm > 0 ? head / (pivot < 0 ? -norm : norm) : 0.f;  // 2 / v^T v, with v_k = 1
        if (norm > 0)
            for (int i = k + 1; i < n; i++) a[i * n + k] /= head;
        for (int j = k + 1; j < n; j++) {
            float along = a[k * n + j];
            for (int i = k + 1; i < n; i++) along += a[i * n + k] * a[i * n + j];
            along *= scale[k];
            a[k * n + j] -= along;
            for (int i = k + 1; i < n; i++) a[i * n + j] -= along * a[i * n + k];
        }
    }
    for (int i = 0; i < n * n; i++) q[i] = i % (n + 1) == 0 ? 1.f : 0.f;
    for (int k = n - 1; k >= 0; k--)
        for (int j = k; j < n; j++) {
            float along = q[k * n + j];
            for (int i = k + 1; i < n; i++) along += a[i * n + k] * q[i * n + j];
            along *= scale[k];
            q[k * n + j] -= along;
            for (int i = k + 1; i < n; i++) q[i * n + j] -= along * a[i * n + k];
        }
}

// ---------------------------------------------------------------- a matrix and what is remembered of its gradients
struct SoapMatrix {
    int rows, columns;                     // the last row is the bias
    float *mean, *squares;                 // (rows, columns): of the gradient; of the rotated one, squared
    float *left, *right, *from_left, *from_right;  // covariances (rows, rows), (columns, columns); their bases
    static size_t size(int rows, int columns) { return 2 * ((size_t)rows * columns + rows * rows + columns * columns); }
    static SoapMatrix at(float*& p, int rows, int columns) {
        SoapMatrix m{};
        m.rows = rows;
        m.columns = columns;
        const size_t n = rows * columns, l = rows * rows, r = columns * columns;
        float** parts[] = {&m.mean, &m.squares, &m.left, &m.right, &m.from_left, &m.from_right};
        const size_t sizes[] = {n, n, l, r, l, r};
        for (int i = 0; i < 6; i++) {
            *parts[i] = p;
            p += sizes[i];
        }
        return m;
    }
    // gradient (rows, columns) -> the step, to be subtracted from the weights; update: 1, 2, ...
    void step(const SoapSettings& how, const float* gradient, int update, float* out) {
        const int n = rows * columns, most = std::max(rows, columns);
        std::vector<float> a((size_t)most * most), b((size_t)most * most);
        const auto remember = [&](float* covariance, int size) {
            const float keep = how.beta_covariance;
            for (int i = 0; i < size * size; i++) covariance[i] = keep * covariance[i] + (1.f - keep) * a[i];
        };
        const auto turn = [&](const float* covariance, float* basis, int size) {
            product<false, false>(covariance, basis, size, size, size, a.data());
            orthonormal(a.data(), size, basis);
        };
        if (update == 1) {
            for (int i = 0; i < rows * rows; i++) from_left[i] = i % (rows + 1) == 0 ? 1.f : 0.f;
            for (int i = 0; i < columns * columns; i++) from_right[i] = i % (columns + 1) == 0 ? 1.f : 0.f;
        }
        product<false, true>(gradient, gradient, rows, columns, rows, a.data());
        remember(left, rows);
        product<true, false>(gradient, gradient, columns, rows, columns, a.data());
        remember(right, columns);
        if (update % how.interval == 0) {
            turn(left, from_left, rows);
            turn(right, from_right, columns);
        }
        const auto rotate = [&](const float* x, float* to) {
            product<true, false>(from_left, x, rows, rows, columns, b.data());
            product<false, false>(b.data(), from_right, rows, columns, columns, to);
        };
        rotate(gradient, a.data());
        for (int i = 0; i < n; i++) {
            mean[i] = how.beta1 * mean[i] + (1.f - how.beta1) * gradient[i];
            squares[i] = how.beta2 * squares[i] + (1.f - how.beta2) * a[i] * a[i];
        }
        rotate(mean, a.data());
        adam(how, a.data(), squares, n, update);
        product<false, false>(from_left, a.data(), rows, rows, columns, b.data());
        product<false, true>(b.data(), from_right, rows, columns, columns, out);
    }
    // mean -> Adam's step
    static void adam(const SoapSettings& how, float* mean, const float* squares, int n, int update) {
        const float first = 1.f - std::pow(how.beta1, (float)update), second = 1.f - std::pow(how.beta2, (float)update);
        for (int i = 0; i < n; i++)
            mean[i] = how.learning_rate * (mean[i] / first) / (std::sqrt(squares[i] / second) + 1e-8f);
    }
};

}  // namespace

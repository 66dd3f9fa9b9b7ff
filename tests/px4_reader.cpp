// Reads an archive by rl_tools' own tar reader, as PX4's module does, and evaluates its example.
//     px4_reader policy.tar [inputs actions]
// prints: steps of the example; the mean difference of its first 5 steps of 2 flights by the
// layers, one step after the other from the initial hidden state; the same by the executor at
// 100 Hz, which clips actions to -1..1; the mean difference of the whole example by the layers.
// With two more files it flies its l2f loop as mc_raptor does at 400 Hz: a row of 13 float32 for
// each call in (position, orientation w x y z, velocity, angular velocity), 4 actions out.
// What rl_tools cannot read it refuses by abort(). The order of the includes matters to it.
#include <rl_tools/operations/cpu.h>
#include <rl_tools/nn/layers/dense/operations_cpu.h>
#include <rl_tools/nn/layers/gru/operations_generic.h>
#include <rl_tools/nn_models/sequential/operations_generic.h>
#include <rl_tools/inference/applications/l2f/operations_generic.h>
#include <rl_tools/persist/backends/tar/operations_generic.h>
#include <rl_tools/nn/parameters/persist.h>
#include <rl_tools/nn/layers/dense/persist.h>
#include <rl_tools/nn/layers/gru/persist.h>
#include <rl_tools/nn_models/sequential/persist.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

namespace rlt = rl_tools;
namespace tar = rlt::persist::backends::tar;
namespace sequential = rlt::nn_models::sequential;

using DEVICE = rlt::devices::DefaultCPU;
using TI = DEVICE::index_t;
using RNG = DEVICE::SPEC::RANDOM::ENGINE<>;
using NUMBERS = rlt::numeric_types::Policy<float>;

constexpr TI OBSERVED = 22, HIDDEN = 16, ACTIONS = 4, FLIGHTS = 2, STEPS = 5;
constexpr auto RELU = rlt::nn::activation_functions::ActivationFunction::RELU;
constexpr auto IDENTITY = rlt::nn::activation_functions::ActivationFunction::IDENTITY;

// 500 steps: rl_tools begins a new sequence after as many
using SHAPE = rlt::tensor::Shape<TI, 500, 1, OBSERVED>;
template <TI N, rlt::nn::activation_functions::ActivationFunction F>
using DENSE = rlt::nn::layers::dense::BindConfiguration<
    rlt::nn::layers::dense::Configuration<NUMBERS, TI, N, F>>;
using GRU = rlt::nn::layers::gru::BindConfiguration<
    rlt::nn::layers::gru::Configuration<NUMBERS, TI, HIDDEN>>;
template <typename CONTENT, typename NEXT = sequential::OutputModule>
using MODULE = sequential::Module<CONTENT, NEXT>;
using CHAIN = MODULE<DENSE<HIDDEN, RELU>, MODULE<GRU, MODULE<DENSE<ACTIONS, IDENTITY>>>>;
using POLICY = sequential::Build<rlt::nn::capability::Forward<>, CHAIN, SHAPE>;

template <TI N>
using ROW = rlt::Tensor<rlt::tensor::Specification<float, TI, rlt::tensor::Shape<TI, 1, N>>>;

constexpr uint64_t STEP_NS = 10000000; // 100 Hz
using EXECUTOR_SPEC = rlt::inference::executor::Specification<NUMBERS, TI, uint64_t, POLICY,
                                                              STEP_NS, STEP_NS>;

DEVICE device;
RNG rng;
POLICY policy;
std::vector<char> file;

std::vector<float> numbers(const char *entry) {
    char *data = nullptr;
    TI size = 0;
    if (!tar::get(device, file.data(), (TI)file.size(), entry, data, size)) std::abort();
    std::vector<float> out(size / sizeof(float));
    std::memcpy(out.data(), data, size);
    return out;
}

// mean difference over some steps of all flights; answer(flight, step, observation, action)
template <typename ANSWER>
double difference(const std::vector<float> &given, const std::vector<float> &wanted, TI steps,
                  float limit, ANSWER answer) {
    ROW<OBSERVED> observation;
    ROW<ACTIONS> action;
    rlt::malloc(device, observation);
    rlt::malloc(device, action);
    double sum = 0;
    for (TI flight = 0; flight < FLIGHTS; flight++) {
        for (TI step = 0; step < steps; step++) {
            const TI row = step * FLIGHTS + flight;
            for (TI i = 0; i < OBSERVED; i++)
                rlt::set(device, observation, given[row * OBSERVED + i], 0, i);
            answer(step, observation, action);
            for (TI i = 0; i < ACTIONS; i++) {
                const float want = wanted[row * ACTIONS + i];
                const float clipped = std::max(-limit, std::min(limit, want));
                sum += std::fabs(rlt::get(device, action, 0, i) - clipped);
            }
        }
    }
    rlt::free(device, observation);
    rlt::free(device, action);
    return sum / (steps * FLIGHTS * ACTIONS);
}

std::vector<char> content(const char *path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

namespace l2f = rlt::inference::applications::l2f;
constexpr uint64_t CALL_NS = 2500000; // 400 Hz; every fourth call moves the hidden state
using LOOP_SPEC = l2f::Specification<NUMBERS, TI, uint64_t, 1, ACTIONS, POLICY, CALL_NS, STEP_NS,
                                     true, STEP_NS / CALL_NS>;

void fly(const char *inputs, const char *actions) {
    static rlt::inference::applications::L2F<LOOP_SPEC> loop;
    rlt::malloc(device, loop);
    rlt::reset(device, loop, policy, rng);
    const auto bytes = content(inputs);
    std::vector<float> rows(bytes.size() / sizeof(float));
    std::memcpy(rows.data(), bytes.data(), bytes.size());
    std::ofstream out(actions, std::ios::binary);
    l2f::Action<LOOP_SPEC> action = {};
    for (TI t = 0; t < rows.size() / 13; t++) {
        const float *row = rows.data() + 13 * t;
        l2f::Observation<LOOP_SPEC> seen;
        std::copy(row, row + 3, seen.position);
        std::copy(row + 3, row + 7, seen.orientation);
        std::copy(row + 7, row + 10, seen.linear_velocity);
        std::copy(row + 10, row + 13, seen.angular_velocity);
        std::copy(action.action, action.action + ACTIONS, seen.previous_action);
        rlt::control(device, loop, (t + 1) * CALL_NS, policy, seen, action, rng);
        out.write(reinterpret_cast<const char *>(action.action), sizeof action.action);
    }
}

int main(int argc, char **argv) {
    file = content(argv[1]);
    if (file.size() < 1024) std::abort();
    rlt::malloc(device, policy);
    rlt::init(device, rng, 0);

    using SPEC = tar::ReaderGroupSpecification<TI>;
    tar::ReaderGroup<SPEC> archive;
    archive.data = file.data();
    archive.size = file.size();
    auto actor = rlt::get_group(device, archive, "actor");
    rlt::load(device, policy, actor);
    const auto given = numbers("example/input/data"), wanted = numbers("example/output/data");
    const TI steps = wanted.size() / (FLIGHTS * ACTIONS);
    if (steps < STEPS || given.size() != steps * FLIGHTS * OBSERVED) std::abort();

    POLICY::State<true> state;
    POLICY::Buffer<true> buffer;
    rlt::malloc(device, state);
    rlt::malloc(device, buffer);
    rlt::Mode<rlt::mode::Evaluation<>> mode;
    auto layers = [&](TI step, ROW<OBSERVED> &observation, ROW<ACTIONS> &action) {
        if (step == 0) rlt::reset(device, policy, state, rng);
        rlt::evaluate_step(device, policy, observation, state, action, buffer, rng, mode);
    };

    rlt::inference::Executor<EXECUTOR_SPEC> executor;
    rlt::malloc(device, executor);
    auto executed = [&](TI step, ROW<OBSERVED> &observation, ROW<ACTIONS> &action) {
        if (step == 0) rlt::reset(device, executor, policy, rng);
        const auto status = rlt::control(device, executor, step * STEP_NS, policy, observation,
                                         action, rng);
        if (!status.OK || status.step_type != decltype(status)::NATIVE) std::abort();
    };

    const float none = 1e30f;
    std::printf("%lu %.9g %.9g %.9g\n", (unsigned long)steps,
                difference(given, wanted, STEPS, none, layers),
                difference(given, wanted, STEPS, 1.0f, executed),
                difference(given, wanted, steps, none, layers));
    if (argc == 4) fly(argv[2], argv[3]);
    return 0;
}

// What memory a launch may touch, for the host check: every access is looked up, every byte written is
// counted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

// Bytes that may be touched, such as one row of a tile in one operand.
struct Region {
  int64_t begin, end;
  int64_t count;  // where its bytes are counted in `written`, -1 if it may only be read
};

std::vector<Region> regions;  // by address
std::vector<uint8_t> written;
int64_t violations = 0;

bool may_access(int64_t address, int64_t bytes, bool write) {
  const auto after = std::upper_bound(regions.begin(), regions.end(), address,
                                      [](int64_t a, const Region& r) { return a < r.begin; });
  const bool inside = after != regions.begin() && address + bytes <= (after - 1)->end;
  if (!inside || address % bytes != 0 || (write && (after - 1)->count < 0)) {
    ++violations;
    return false;
  }
  if (!write) return true;
  const Region& r = *(after - 1);
  for (int64_t i = 0; i < bytes; ++i) ++written[static_cast<size_t>(r.count + address - r.begin + i)];
  return true;
}

void allow_bytes(int64_t begin, int64_t bytes, bool write) {
  regions.push_back({begin, begin + bytes, write ? static_cast<int64_t>(written.size()) : -1});
  if (write) written.resize(written.size() + static_cast<size_t>(bytes), 0);
}

void forget() {
  regions.clear();
  written.clear();
  violations = 0;
}

void by_address() {
  std::sort(regions.begin(), regions.end(),
            [](const Region& a, const Region& b) { return a.begin < b.begin; });
}

int64_t not_written_once(bool masked) {
  return std::count_if(written.begin(), written.end(),
                       [=](uint8_t n) { return n > 1 || (n == 0 && !masked); });
}

}  // namespace

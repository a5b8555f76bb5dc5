import sys, time, itertools
import bench.gpu
import torch
from bench.gpu.random_model import *
from bench.gpu.timing import *
from xverse_runtime.decode_loop import DecodeLoop
from xverse_runtime.store.precision import bytes_per_token, PRESETS
from xverse_runtime.kv_cache import KVCache
import xverse_kernels.triton.backend as TB
from xverse_kernels.triton import tiles as TL
torch.manual_seed(0)
bw=read_bandwidth(); print('bandwidth', bw/1e9, flush=True)
def decode_rate(loop, start, n=40):
    loop.positions.fill_(start)
    for _ in range(4): loop.step(start)
    torch.cuda.synchronize(); times=[]
    for _ in range(3):
        loop.positions.fill_(start); torch.cuda.synchronize(); t=time.perf_counter()
        for _ in range(n): loop.step(start)
        torch.cuda.synchronize(); times.append((time.perf_counter()-t)/n)
    return sorted(times)[1]
from xverse_kernels.triton import sampling as S, attention as A
from xverse_kernels.triton.tiles import *
import dataclasses
if 'sample' in sys.argv:
    V=100534; st=S.SamplerState.empty(1,V,torch.device('cuda')); lg=torch.randn(1,V,device='cuda')*3
    assert int(S.sample(lg,st))==int(lg.argmax())
    print('greedy us',microseconds([lambda: S.sample(lg,st)]*10), 'argmax', microseconds([lambda: lg.argmax(-1)]*10))
    from xverse_runtime.sampling import token_probabilities; from xverse_runtime.types import SamplingParams
    for tk,tp,mp in ((30,.85,0.),(5,1.,0.),(64,.95,.1)):
        st=S.SamplerState.empty(1,V,torch.device('cuda')); hist=lg[0].topk(3).indices[:2]
        st.settings[:]=torch.tensor([.7,1.1,tp,mp]); st.top_k[:]=tk; st.seeds[:]=7; st.seen.zero_(); st.seen[0,hist]=1
        us=microseconds([lambda: S.sample(lg,st)]*10)
        cnt=torch.zeros(V,device='cuda'); N=3000; toks=[]
        for i in range(N):
            st.seen.zero_(); st.seen[0,hist]=1; toks.append(S.sample(lg,st).clone())
        toks=torch.cat(toks); cnt.scatter_add_(0,toks,torch.ones(N,device='cuda'))
        pr=token_probabilities(lg[0].cpu(),hist.cpu(),SamplingParams(temperature=.7,top_k=tk,top_p=tp,min_p=mp,repetition_penalty=1.1)).cuda()
        print('draw us',us,'kept',int((pr>0).sum()),'outside',float(cnt[pr==0].sum()),'chi2/n',float(((cnt-N*pr)[pr>0]**2/(N*pr[pr>0])).sum()/(pr>0).sum()),flush=True)
    lg[0,77]=float('nan'); print('nan',int(S.sample(lg,st)))
for prec in [a for a in sys.argv[1:] if a in PRESETS]:
    t=time.time(); dec,pool,cfg=random_decoder(prec); torch.cuda.synchronize(); print(prec,'made',time.time()-t, torch.cuda.memory_allocated()/1e9,flush=True)
    per=bytes_per_token(cfg,PRESETS[prec])
    for pdl in (1,3,5,7,9,0):
        dec._kernels._pdl=pdl
        st=S.SamplerState.empty(1,cfg.vocab_size,torch.device('cuda')); loop=DecodeLoop(dec,pool,lambda l: S.sample(l,st))
        for c in (0,900,4000,8100):
            s=decode_rate(loop,c); kv=c*286720
            print(f'{prec} pdl={pdl} ctx {c}: {1/s:.1f} tok/s {s*1e3:.3f} ms  share {(per+kv)/s/bw:.1%}',flush=True)
            if pdl not in (1,): break
        if pdl==0:
          from torch.profiler import profile, ProfilerActivity
          loop.positions.fill_(0)
          with profile(activities=[ProfilerActivity.CUDA]) as prof:
            for _ in range(3): loop.step(0)
            torch.cuda.synchronize()
          rows=sorted(((e.key[:60],e.count,e.device_time_total) for e in prof.key_averages()),key=lambda r:-r[2])[:14]
          for k,c,tt in rows: print(f'   {k:60s} n={c/3:.0f} {tt/c:8.2f} us  total {tt/3:8.1f}')
    loop=None
    for n in (128,512,2048):
        ids=[(i*7919)%100000+4 for i in range(n)]
        cache=KVCache(pool); ts=[]
        for _ in range(4):
            cache.truncate(0); torch.cuda.synchronize(); t=time.perf_counter(); dec.forward(ids,cache); torch.cuda.synchronize(); ts.append(time.perf_counter()-t)
        print(f'{prec} prefill {n}: {min(ts)*1e3:.2f} ms, {n/min(ts):.0f} tok/s', ['%.1f'%(x*1e3) for x in ts],flush=True)
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        cache.truncate(0); dec.forward(ids[:512],cache); torch.cuda.synchronize()
    rows=sorted(((e.key[:60],e.count,e.device_time_total) for e in prof.key_averages()),key=lambda r:-r[2])[:14]
    for k,c,tt in rows: print(f'   {k:60s} n={c:.0f} {tt/c:8.2f} us  total {tt:8.1f}')
    # batch 8
    del pool,cache; 
    pool8=KVPool(cfg,1024,DTYPE,torch.device('cuda'),8); dec._kernels._pdl=True
    loop=DecodeLoop(dec,pool8,lambda l: l.argmax(-1),8)
    loop.tokens.copy_(torch.arange(8)*1000+7)
    s=decode_rate(loop,100); print(f'{prec} batch 8: {8/s:.1f} tok/s {s*1e3:.3f} ms',flush=True)
    del loop,dec,pool8; torch.cuda.empty_cache()
